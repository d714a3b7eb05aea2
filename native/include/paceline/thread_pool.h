// Threads that run one program together, in phases that barriers separate.
//
// Between runs a thread spins for a moment and then sleeps; inside a run it spins, so that a phase
// costs well under a microsecond. With more threads than processors it yields instead.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace paceline {

class Worker;

class ThreadPool {
 public:
  // `num_threads` counts the caller of run. `pin` ties each of the others to a processor of its
  // own, different cores first, where the system can.
  explicit ThreadPool(int num_threads, bool pin = true);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls program(Worker&) on every thread, worker 0 being the caller, and returns when all are
  // done. Callers take turns. Every worker must meet the same barriers and loops in the same
  // order; a program must not throw, and must not call run of its own pool.
  template <class Program>
  void run(Program&& program) {
    using Plain = std::remove_reference_t<Program>;
    run_erased([](void* object, Worker& worker) { (*static_cast<Plain*>(object))(worker); },
               const_cast<void*>(static_cast<const void*>(std::addressof(program))));
  }

 private:
  friend class Worker;
  using Call = void (*)(void* object, Worker& worker);

  void run_erased(Call call, void* object);
  void serve(int index);
  bool arrive();   // whether this worker is the last one of the phase
  void release();  // ends the phase
  void wait_for_release(std::uint32_t phase);

  std::vector<std::thread> threads_;
  std::mutex turn_;
  bool crowded_ = false;  // more threads than processors: spinning would steal from the others
  Call call_ = nullptr;
  void* object_ = nullptr;
  bool stopping_ = false;
  alignas(64) std::atomic<std::uint32_t> generation_ = 0;  // counts runs
  alignas(64) std::atomic<std::uint32_t> phase_ = 0;       // counts barriers passed
  alignas(64) std::atomic<int> num_arrived_ = 0;
  alignas(64) std::atomic<int> next_ = 0;  // first item of the loop that nobody took
};

// One thread's view of a run.
class Worker {
 public:
  int index() const { return index_; }
  int num_workers() const { return num_workers_; }

  // Nobody goes on before all have come.
  void barrier() {
    barrier([] {});
  }

  // The same; the last worker to come runs `alone` before anybody goes on. For work too small to
  // share this saves a second barrier.
  template <class Alone>
  void barrier(Alone&& alone) {
    if (num_workers_ == 1) return alone();
    const std::uint32_t phase = pool_.phase_.load(std::memory_order_relaxed);
    if (pool_.arrive()) {
      alone();
      pool_.release();
    } else {
      pool_.wait_for_release(phase);
    }
  }

  // body(first, end) over items 0 to count - 1 in chunks of at least `grain`, large ones first, to
  // whoever asks; then a barrier, with `alone` as above.
  template <class Body, class Alone>
  void for_each(int count, int grain, Body&& body, Alone&& alone) {
    if (num_workers_ == 1) {
      if (count > 0) body(0, count);
      return alone();
    }
    int first, end;
    while (take(count, grain, first, end)) body(first, end);
    barrier(alone);
  }

  template <class Body>
  void for_each(int count, int grain, Body&& body) {
    for_each(count, grain, body, [] {});
  }

 private:
  friend class ThreadPool;
  Worker(ThreadPool& pool, int index)
      : pool_(pool), index_(index), num_workers_(pool.num_threads()) {}

  // Half of a worker's share of what is left: few chunks, and small ones at the end.
  bool take(int count, int grain, int& first, int& end) {
    first = pool_.next_.load(std::memory_order_relaxed);
    do {
      if (first >= count) return false;
      const int chunk = std::max(grain, (count - first) / (2 * num_workers_));
      end = chunk < count - first ? first + chunk : count;
    } while (!pool_.next_.compare_exchange_weak(first, end, std::memory_order_relaxed));
    return true;
  }

  ThreadPool& pool_;
  const int index_;
  const int num_workers_;
};

}  // namespace paceline
