// A fixed pool: the caller works too, tasks are numbered, the call returns when all are done.
#pragma once

#include <cstddef>
#include <functional>

namespace eq {

int thread_count();
void set_thread_count(int threads);

// Calls body(task) for every task in [0, tasks), on at most thread_count() threads.
void parallel_for(int tasks, const std::function<void(int)>& body);

// A buffer of this thread, 64-byte aligned, with 256 readable bytes after the end; valid until asked for again.
enum class Slot { kOperand, kSecond, kDecoded, kScale, kSegments, kCodes, kRing, kRows, kAttention, kCount };
void* scratch(Slot slot, size_t bytes);

}  // namespace eq
