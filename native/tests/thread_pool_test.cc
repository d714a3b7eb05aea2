// The thread pool: every item once, phases in order, alone means alone, with more threads than
// processors too. Run it under the thread sanitizer.
#include "paceline/thread_pool.h"

#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "test.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

constexpr int kThreads[] = {1, 2, 3, 8};

}  // namespace

TEST(every_worker_runs_the_program_once) {
  for (const int threads : kThreads) {
    ThreadPool pool(threads);
    std::vector<int> calls(static_cast<std::size_t>(threads));
    for (int run = 1; run <= 50; ++run) {
      pool.run([&](Worker& worker) {
        CHECK(worker.num_workers() == threads);
        ++calls[static_cast<std::size_t>(worker.index())];
      });
      for (const int count : calls) CHECK(count == run);
    }
  }
}

TEST(loops_cover_every_item_once_and_phases_see_the_ones_before) {
  for (const int threads : kThreads) {
    ThreadPool pool(threads);
    for (const int count : {0, 1, 2, 7, 64, 1000}) {
      for (const int grain : {1, 3, 100}) {
        // Plain ints: the barrier alone orders one phase's writes before the next one's reads.
        std::vector<int> items(static_cast<std::size_t>(count), 1);
        int total = -1;
        pool.run([&](Worker& worker) {
          for (int phase = 0; phase < 3; ++phase) {
            worker.for_each(count, grain, [&](int first, int end) {
              CHECK(end - first >= std::min(grain, count - first));
              // Read by another worker than the one that wrote it last, as a rule.
              for (int i = first; i < end; ++i) items[static_cast<std::size_t>(i)] *= 2;
            });
          }
          worker.for_each(
              count, grain,
              [&](int first, int end) {
                for (int i = first; i < end; ++i) ++items[static_cast<std::size_t>(i)];
              },
              [&] { total = std::accumulate(items.begin(), items.end(), 0); });
          CHECK(total == 9 * count);
        });
        for (const int item : items) CHECK(item == 9);
      }
    }
  }
}

TEST(exactly_one_worker_runs_alone) {
  for (const int threads : kThreads) {
    ThreadPool pool(threads);
    int alone = 0;
    pool.run([&](Worker& worker) {
      for (int i = 1; i <= 200; ++i) {
        worker.barrier([&] { ++alone; });
        CHECK(alone == i);
        worker.barrier();
      }
    });
  }
}

TEST(pools_live_side_by_side_and_callers_take_turns) {
  ThreadPool first(2), second(3, false);
  int runs = 0;
  const auto use = [&](ThreadPool& pool) {
    for (int i = 0; i < 50; ++i) {
      pool.run([](Worker& worker) { worker.barrier(); });
      first.run([&](Worker& worker) { worker.barrier([&] { ++runs; }); });
    }
  };
  std::thread other([&] { use(second); });
  use(first);
  other.join();
  CHECK(runs == 100);
}

TEST(an_idle_pool_wakes_up) {
  ThreadPool pool(2);
  int runs = 0;
  for (int i = 0; i < 3; ++i) {
    // Longer than the spin between runs, so that the other thread sleeps.
    for (const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
         std::chrono::steady_clock::now() < end;) {
    }
    pool.run([&](Worker& worker) { worker.barrier([&] { ++runs; }); });
  }
  CHECK(runs == 3);
}

TEST(no_threads_are_refused) {
  CHECK(refuses([] { ThreadPool pool(0); }));
}
