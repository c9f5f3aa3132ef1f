#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace eq {
namespace {

// Waking a sleeping thread takes tens of microseconds, longer than many a kernel, so a thread that is done watches for
// the next call for this long first: packed models make one every few microseconds. Whoever watches lets others run on
// its core, for the thread that it waits for may be one of them.
constexpr auto kWatch = std::chrono::microseconds(200);
constexpr int kSpins = 64;  // between two looks at the clock

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Returns when the condition is true or was watched for long enough.
template <class Condition>
void watch(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + kWatch;
  do {
    for (int spins = 0; spins < kSpins; ++spins) {
      if (condition()) return;
      relax();
    }
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < end);
}

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      ++generation_;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int tasks, const std::function<void(int)>& body) {
    std::lock_guard<std::mutex> one_at_a_time(caller_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = &body;
      tasks_ = tasks;
      next_ = 0;
      busy_ = static_cast<int>(workers_.size());
      ++generation_;
    }
    wake_.notify_all();
    drain();
    while (busy_.load(std::memory_order_acquire) > 0) watch([this] { return busy_.load(std::memory_order_acquire) == 0; });
  }

 private:
  void drain() {
    for (int task = next_++; task < tasks_; task = next_++) (*body_)(task);
  }

  void work() {
    unsigned seen = 0;
    for (;;) {
      watch([&] { return generation_.load(std::memory_order_acquire) != seen; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (stopped_) return;
      lock.unlock();
      drain();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  std::mutex caller_, mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> next_{0}, busy_{0};
  int tasks_ = 0;
  bool stopped_ = false;
  const std::function<void(int)>* body_ = nullptr;
};

std::mutex pool_mutex;
std::shared_ptr<Pool>& pool() {
  static std::shared_ptr<Pool> instance = std::make_shared<Pool>(1);
  return instance;
}

std::shared_ptr<Pool> current_pool() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  return pool();
}

struct Buffer {
  void* data = nullptr;
  size_t size = 0;
  ~Buffer() { std::free(data); }
};

std::atomic<int> pool_size{1};

}  // namespace

int thread_count() { return pool_size.load(std::memory_order_relaxed); }

void set_thread_count(int threads) {
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (pool()->size() != threads) pool() = std::make_shared<Pool>(threads);
  pool_size = threads;
}

void parallel_for(int tasks, const std::function<void(int)>& body) {
  if (tasks == 1 || thread_count() == 1)
    for (int task = 0; task < tasks; ++task) body(task);
  else
    current_pool()->run(tasks, body);
}

void* scratch(Slot slot, size_t bytes) {
  thread_local Buffer buffers[static_cast<int>(Slot::kCount)];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    buffer.data = std::aligned_alloc(64, buffer.size + 256);
    if (!buffer.data) std::abort();
  }
  return buffer.data;
}

}  // namespace eq
