#include "test.h"

int main() { return paceline::testing::run_all(); }
