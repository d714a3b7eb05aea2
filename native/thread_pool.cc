#include "paceline/thread_pool.h"

#include <chrono>
#include <fstream>
#include <stdexcept>
#include <string>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace paceline {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kSpinBetweenRuns{50};
// Then yields: at once back where nobody else wants the processor.
constexpr std::chrono::microseconds kSpinInRun{50};
constexpr std::chrono::milliseconds kYieldInRun{5};

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Whether `value` is no longer `old`, looked at with pauses for a time.
template <class Time>
bool spin(const std::atomic<std::uint32_t>& value, std::uint32_t old, Time time) {
  constexpr int kLooksPerClock = 32;
  const auto end = Clock::now() + time;
  do {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (value.load(std::memory_order_acquire) != old) return true;
      pause();
    }
  } while (Clock::now() < end);
  return false;
}

bool yield(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  const auto end = Clock::now() + kYieldInRun;
  do {
    if (value.load(std::memory_order_acquire) != old) return true;
    std::this_thread::yield();
  } while (Clock::now() < end);
  return false;
}

#ifdef __linux__
// Whether a processor is the first of its core's.
bool leads_core(int processor) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(processor) +
                     "/topology/thread_siblings_list");
  int first = processor;
  return !(file >> first) || first == processor;
}

// Processors that this process may use: one of each core, then the rest.
std::vector<int> processors() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return {};
  std::vector<int> leaders, others;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &allowed)) (leads_core(i) ? leaders : others).push_back(i);
  }
  leaders.insert(leaders.end(), others.begin(), others.end());
  return leaders;
}

void pin_to(std::thread& thread, int processor) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(processor, &one);
  // Where it fails the thread merely wanders.
  pthread_setaffinity_np(thread.native_handle(), sizeof one, &one);
}
#endif

}  // namespace

ThreadPool::ThreadPool(int num_threads, bool pin) {
  if (num_threads < 1) throw std::invalid_argument("a thread pool needs at least 1 thread");
  for (int index = 1; index < num_threads; ++index) {
    threads_.emplace_back();  // num_threads() is right before the first of them starts
  }
#ifdef __linux__
  const std::vector<int> places = processors();
  crowded_ = num_threads > static_cast<int>(places.size());
#else
  crowded_ = num_threads > static_cast<int>(std::thread::hardware_concurrency());
#endif
  for (int index = 1; index < num_threads; ++index) {
    std::thread& thread = threads_[static_cast<std::size_t>(index - 1)];
    thread = std::thread([this, index] { serve(index); });
#ifdef __linux__
    if (pin && !crowded_) pin_to(thread, places[static_cast<std::size_t>(index)]);
#else
    static_cast<void>(pin);
#endif
  }
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_erased(Call call, void* object) {
  const std::lock_guard<std::mutex> turn(turn_);
  Worker worker(*this, 0);
  if (threads_.empty()) return call(object, worker);
  call_ = call;
  object_ = object;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  call(object, worker);
  worker.barrier();
}

void ThreadPool::serve(int index) {
  Worker worker(*this, index);
  for (std::uint32_t seen = 0;; ++seen) {
    if (crowded_ || !spin(generation_, seen, kSpinBetweenRuns)) {
      generation_.wait(seen, std::memory_order_acquire);
    }
    if (stopping_) return;
    call_(object_, worker);
    if (arrive()) release();  // only the caller waits for the end
  }
}

bool ThreadPool::arrive() {
  return num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads();
}

void ThreadPool::release() {
  num_arrived_.store(0, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  phase_.fetch_add(1, std::memory_order_release);
  phase_.notify_all();
}

void ThreadPool::wait_for_release(std::uint32_t phase) {
  if (!crowded_ && spin(phase_, phase, kSpinInRun)) return;
  while (!yield(phase_, phase)) phase_.wait(phase, std::memory_order_acquire);
}

}  // namespace paceline
