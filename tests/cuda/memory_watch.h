// What cuda_on_cpu.h tells memory_watch.cpp, and is told by it.

#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>

namespace memory_watch {

struct Array {  // the memory of a launch's argument
    uint64_t start, stop, number_size, argument;
};

struct Arrays {
    const Array* first;
    size_t count;
};

struct Span {
    uintptr_t start = 0, stop = 0;
    bool has(uintptr_t address, size_t size) const { return start <= address && address + size <= stop; }
};

inline Span span_of(const void* start, size_t size) { return {uintptr_t(start), uintptr_t(start) + size}; }

// A launch begins: with these arrays, without that part of shared memory, and with memory of the emulation's own. It is
// not watched where `arrays.first` is null.
void begin(Arrays arrays, Span unasked, Span own);

// From now on a thread accesses memory, besides its variables there; so many barriers and `__syncwarp` are behind it.
void resume(unsigned block, unsigned thread, unsigned barriers, unsigned syncs, Span variables);

// From now on the emulation does.
void pause();

// An atomic access is coming.
void atomic(const void* address, size_t size);

}  // namespace memory_watch

namespace cuda_on_cpu {

[[noreturn]] void fail(const std::string& what);  // of the thread that is running; it ends the launch

}  // namespace cuda_on_cpu
