#include "paceline/file_range.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "draft_model.h"
#include "paceline/drafter.h"
#include "paceline/errors.h"
#include "test.h"
#include "tiny_target.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::int64_t kStart = 37;  // of what lies in a file: nothing has to be aligned

// A file without a name that holds some bytes from kStart on.
class TestFile {
 public:
  explicit TestFile(const Bytes& bytes) : file_(std::tmpfile()) {
    CHECK(file_ != nullptr);
    const auto size = static_cast<ssize_t>(bytes.size());
    CHECK(pwrite(descriptor(), bytes.data(), bytes.size(), kStart) == size);
  }
  ~TestFile() { std::fclose(file_); }
  int descriptor() const { return fileno(file_); }
  void cut(std::int64_t size) const { CHECK(ftruncate(descriptor(), kStart + size) == 0); }
  std::shared_ptr<const FileRange> range() const {
    return std::make_shared<FileRange>(descriptor(), kStart, "the/model.gguf");
  }

 private:
  std::FILE* file_;
};

Bytes counting(std::size_t size) {
  Bytes bytes(size);
  std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
  return bytes;
}

// What a ReadError says; "" without one.
template <class Action>
std::string complaint(Action&& action) {
  try {
    action();
  } catch (const ReadError& error) {
    return error.what();
  }
  return {};
}

bool mentions(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

std::vector<float> logits_of(Target& target, const std::vector<std::int32_t>& tokens, int outputs) {
  auto cache = target.new_cache(300, 1);
  std::vector<float> logits(static_cast<std::size_t>(outputs * target.shape().vocab_size));
  std::vector<float> hidden(static_cast<std::size_t>(outputs * target.shape().hidden_size));
  const SequenceRows rows = {cache.get(), tokens.data(), static_cast<int>(tokens.size()), outputs,
                             0};
  target.forward({&rows, 1}, {logits.data(), hidden.data(), nullptr, nullptr, 0});
  logits.insert(logits.end(), hidden.begin(), hidden.end());
  return logits;
}

}  // namespace

TEST(a_range_reads_what_lies_in_the_file) {
  const Bytes bytes = counting(1000);
  const TestFile file(bytes);
  const auto range = file.range();
  for (const std::size_t offset : {0, 1, 500, 999}) {
    Bytes got(1000 - offset);
    range->read(offset, got.size(), got.data());
    CHECK(std::memcmp(got.data(), bytes.data() + offset, got.size()) == 0);
  }
  range->read(5000, 0, nullptr);
}

TEST(a_file_that_was_cut_short_is_an_error) {
  const TestFile file(counting(1000));
  const auto range = file.range();
  Bytes got(10);
  file.cut(505);
  range->read(495, 10, got.data());
  for (const std::size_t offset : {496, 505, 900}) {
    const std::string said = complaint([&] { range->read(offset, 10, got.data()); });
    CHECK(mentions(said, "the/model.gguf") && mentions(said, "shorter than when it was opened"));
  }
}

TEST(a_range_keeps_a_descriptor_of_its_own_and_closes_it) {
  const TestFile file(counting(10));
  const int next = dup(file.descriptor());
  close(next);
  {
    const auto range = file.range();
    CHECK(fcntl(next, F_GETFD) == FD_CLOEXEC);
  }
  CHECK(fcntl(next, F_GETFD) == -1);
  CHECK(mentions(complaint([&] { FileRange(next, 0, "the/model.gguf"); }), "the/model.gguf"));
}

TEST(rows_from_a_file_give_the_bits_of_rows_from_memory) {
  ThreadPool pool(2);
  std::vector<std::int32_t> tokens(150);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int>(i * 7 % 203);
  for (const char* dtype : kDtypes) {
    const TinyTarget model(Geometry::per_layer, dtype);
    auto from_memory = model.load(pool, kernels());
    Target from_files(pool, model.shape, kernels());
    std::vector<std::unique_ptr<TestFile>> files;
    for (const auto& [name, tensor] : model.tensors) {
      files.push_back(std::make_unique<TestFile>(tensor.bytes));
      Tensor view = tensor.view();
      view.file = files.back()->range();
      from_files.load(view);
    }
    from_files.finish();
    files.clear();  // the target has its own descriptors
    for (const int outputs : {1, 3, 150}) {
      CHECK(same_bits(logits_of(*from_memory, tokens, outputs),
                      logits_of(from_files, tokens, outputs)),
            dtype);
    }
  }
}

TEST(a_pass_over_rows_that_are_gone_changes_no_cache) {
  ThreadPool pool(2);
  const TinyTarget model(Geometry::per_layer, "Q8_0");
  for (const char* cut : {"embed_tokens.weight", "embed_tokens_per_layer.weight"}) {
    Target target(pool, model.shape, kernels());
    const TestFile file(model.tensor(cut).bytes);
    for (const auto& [name, tensor] : model.tensors) {
      Tensor view = tensor.view();
      if (name == cut) view.file = file.range();
      target.load(view);
    }
    target.finish();
    const auto row = static_cast<std::int64_t>(model.tensor(cut).bytes.size()) / 203;
    file.cut(100 * row);
    CHECK(!logits_of(target, {5, 99}, 1).empty());
    auto cache = target.new_cache(20, 1);
    const std::vector<std::int32_t> tokens = {5, 100};
    const SequenceRows rows = {cache.get(), tokens.data(), 2, 0, 0};
    CHECK(mentions(complaint([&] { target.forward({&rows, 1}, {}); }), "the/model.gguf"));
    CHECK(cache->length() == 0);
  }
}

TEST(a_draft_reads_embeddings_and_head_from_files) {
  ThreadPool pool(2);
  const DraftModel model(WeightType::q8_0, 10, 3);
  const auto cache = model.cache(70, kernels());
  const auto draft = [&](Drafter& drafter, int count) {
    return drafter.draft(*cache, {5, model.hidden.data(), count, 69, {1.0, 4242, {}, {}}, {}, {}});
  };
  const RowTable rows = model.rows();
  Drafter from_memory(pool, model.shape, model.target, rows);
  model.load_into(from_memory);
  const Draft expected = draft(from_memory, 4);
  CHECK(expected.tokens.size() == 4);

  const TestFile file(model.embeddings.bytes);
  const RowTable in_file = {rows.type, rows.num_rows, rows.columns, nullptr, {}, file.range()};
  for (const bool ordering_first : {false, true}) {
    Drafter drafter(pool, model.shape, model.target, in_file);
    const TestFile head(model.tensors.at("embed_tokens.weight").bytes);
    if (ordering_first) drafter.load(model.ordering_tensor());
    for (const auto& [name, matrix] : model.tensors) {
      Tensor tensor = matrix.tensor(name);
      if (name == "embed_tokens.weight") tensor.file = head.range(), tensor.data = nullptr;
      drafter.load(tensor);
    }
    if (!ordering_first) drafter.load(model.ordering_tensor());
    drafter.finish();
    const Draft got = draft(drafter, 4);
    CHECK(got.tokens == expected.tokens && got.confidences == expected.confidences);
  }

  Drafter drafter(pool, model.shape, model.target, in_file);
  model.load_into(drafter);
  CHECK(expected.tokens[0] > 5);
  file.cut(6 * static_cast<std::int64_t>(rows.row_bytes()));
  for (int times = 0; times < 2; ++times) {
    CHECK(mentions(complaint([&] { draft(drafter, 4); }), "the/model.gguf"));
    CHECK(draft(drafter, 1).tokens[0] == expected.tokens[0]);
  }
}

TEST(a_head_that_is_gone_is_an_error_while_it_loads) {
  ThreadPool pool(2);
  const DraftModel model(WeightType::q8_0, 10, 3);
  const RowTable rows = model.rows();
  Drafter drafter(pool, model.shape, model.target, rows);
  const TestFile head(model.tensors.at("embed_tokens.weight").bytes);
  head.cut(1000);
  Tensor tensor = model.tensors.at("embed_tokens.weight").tensor("embed_tokens.weight");
  tensor.file = head.range();
  drafter.load(model.ordering_tensor());
  CHECK(mentions(complaint([&] { drafter.load(tensor); }), "the/model.gguf"));
}
