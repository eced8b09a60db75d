// CUDA on the CPU: what our sources use of CUDA, for g++, so that a kernel's results are tested without a device.
//
// The blocks of a grid run one after the other. The threads of a block are fibers: each runs until it waits, at a
// barrier or for its warp, and goes on when all that it waits for have come. A kernel that never waits is a plain loop.
// What would hang or be undefined on a device is an error: a barrier that a thread misses, a lane that is not there,
// and accesses to memory that memory_watch.cpp finds.

#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "memory_watch.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ thread_local  // in a function it lives on, and beside `extern` it may stand

#define UNWATCHED __attribute__((no_sanitize("thread")))  // its accesses to memory are not a kernel's

// ---- types

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_cpu {

template <typename To, typename From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

}  // namespace cuda_on_cpu

struct __half {
    uint16_t bits;

    __half() = default;
    __half(float value) {  // to the nearest, of two the even one
        uint32_t size = cuda_on_cpu::bits_as<uint32_t>(value);
        const uint16_t sign = (size >> 16) & 0x8000;
        size &= 0x7fffffff;
        if (size > 0x7f800000) {
            bits = sign | 0x7fff;  // no number
        } else if (size >= 0x477ff000) {
            bits = sign | 0x7c00;  // rounds to infinity
        } else if (size < 0x38800000) {  // subnormal: beside 0.5, a float's last bit is that of such a half
            bits = sign | (cuda_on_cpu::bits_as<uint32_t>(cuda_on_cpu::bits_as<float>(size) + 0.5f) - 0x3f000000);
        } else {
            bits = sign | ((size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13);
        }
    }
    operator float() const {
        const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits & 0x7c00, fraction = bits & 0x03ff;
        if (exponent == 0) return (sign ? -1.0f : 1.0f) * ldexpf(float(fraction), -24);
        const uint32_t shift = exponent == 0x7c00 ? 0x70000000 : 0x38000000;
        return cuda_on_cpu::bits_as<float>(sign | (((exponent | fraction) << 13) + shift));
    }
};

struct __nv_bfloat16 {
    uint16_t bits;

    __nv_bfloat16() = default;
    __nv_bfloat16(float value) {
        const uint32_t all = cuda_on_cpu::bits_as<uint32_t>(value);
        bits = value != value ? 0x7fff : (all + 0x7fff + ((all >> 16) & 1)) >> 16;
    }
    operator float() const { return cuda_on_cpu::bits_as<float>(uint32_t(bits) << 16); }
};

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }

namespace cuda_on_cpu {

// A parameter's type in NumPy's words: "float32", "const float16*".
template <typename T>
std::string name_of() {
    using Plain = std::remove_cv_t<T>;
    const std::string size = std::to_string(8 * sizeof(std::conditional_t<std::is_void_v<T>, char, T>));
    if constexpr (std::is_pointer_v<T>) {
        using Target = std::remove_pointer_t<T>;
        return (std::is_const_v<Target> ? "const " : "") + name_of<std::remove_cv_t<Target>>() + "*";
    } else if constexpr (std::is_same_v<Plain, __nv_bfloat16>) {
        return "bfloat16";
    } else if constexpr (std::is_same_v<Plain, bool>) {
        return "bool";
    } else if constexpr (std::is_void_v<Plain>) {
        return "void";
    } else if constexpr (std::is_floating_point_v<Plain> || std::is_same_v<Plain, __half>) {
        return "float" + size;
    } else if constexpr (std::is_integral_v<Plain>) {
        return (std::is_signed_v<Plain> ? "int" : "uint") + size;
    } else if constexpr (std::is_class_v<Plain>) {
        return "struct" + size;
    } else {
        return "unknown";
    }
}

// ---- the threads of a block

struct Context {
    jmp_buf jump;  // jumps ask the kernel of the operating system for nothing, unlike swapcontext
    ucontext_t entry;
    bool entered = true;
};

struct Fiber {
    Context context;
    std::unique_ptr<char[]> stack;
};

enum class State { ready, at_barrier, in_warp, ended };

struct Thread {
    uint3 index;
    State state;
    Fiber* fiber;
    int line;                   // of the barrier it waits at
    unsigned mask, lane;        // of the warp's exchange it waits for: who takes part, and whose value it wants
    uint64_t posted, received;
    unsigned ballot;            // of those who take part, who has posted other than 0
    unsigned barriers, syncs;   // how many are behind it; syncs are those of its whole warp
};

constexpr unsigned WARP = 32;
constexpr size_t STACK = 128 * 1024, MOST_SHARED = 227 * 1024;

struct Block {
    std::vector<Thread> threads;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber*> idle;
    std::function<void()> kernel;
    std::string error;
    size_t started;
    unsigned number;
    bool backwards;
    Context scheduler;

    Thread& in_order(size_t i) { return threads[backwards ? threads.size() - 1 - i : i]; }
};

static Block block;
static Thread* thread;
static dim3 grid_size, block_size;
static uint3 block_index;
static long long cycles;  // of the launch: only who looks at the clock takes any

__attribute__((noinline)) static void switch_to(Context& from, Context& to) {
    if (_setjmp(from.jump)) return;
    if (to.entered) _longjmp(to.jump, 1);
    to.entered = true;
    setcontext(&to.entry);
}

static void watch_thread() {
    const unsigned number = thread - block.threads.data();
    memory_watch::resume(block.number, number, thread->barriers, thread->syncs,
                         memory_watch::span_of(thread->fiber->stack.get(), STACK));
}

void fail(const std::string& what) {
    block.error = what;
    thread->state = State::ended;
    switch_to(thread->fiber->context, block.scheduler);
    __builtin_unreachable();
}

static void run_fiber() {
    for (;;) {
        Fiber* self = nullptr;
        for (self = block.idle.back(), block.idle.pop_back(); block.started < block.threads.size();) {
            Thread& mine = block.in_order(block.started++);
            mine.fiber = self;
            thread = &mine;
            watch_thread();
            block.kernel();
            memory_watch::pause();
            mine.state = State::ended;
        }
        block.idle.push_back(self);
        switch_to(self->context, block.scheduler);
    }
}

UNWATCHED static void wait(State state) {
    memory_watch::pause();
    Thread* self = thread;
    self->state = state;
    switch_to(self->fiber->context, block.scheduler);
    thread = self;
    watch_thread();
}

static void go_on(Fiber& fiber) {
    switch_to(block.scheduler, fiber.context);
    if (!block.error.empty()) throw std::runtime_error(block.error);
}

// Runs threads that have not started, until one waits or all have ended.
static void start_threads() {
    if (block.idle.empty()) {
        block.fibers.push_back(std::make_unique<Fiber>());
        Fiber& fiber = *block.fibers.back();
        fiber.stack.reset(new char[STACK]);
        fiber.context.entered = false;
        getcontext(&fiber.context.entry);
        fiber.context.entry.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.entry.uc_stack.ss_size = STACK;
        makecontext(&fiber.context.entry, run_fiber, 0);
        block.idle.push_back(&fiber);
    }
    go_on(*block.idle.back());
}

static bool exchange_in_warp(size_t first) {
    const size_t count = std::min<size_t>(WARP, block.threads.size() - first);
    Thread* lanes = &block.threads[first];
    bool released = false;
    for (size_t i = 0; i < count; ++i) {
        const unsigned mask = lanes[i].mask;
        if (lanes[i].state != State::in_warp) continue;
        if (!(mask >> i & 1)) throw std::runtime_error("a lane's mask leaves out the lane itself");
        bool complete = true;
        unsigned ballot = 0;
        for (size_t j = 0; j < WARP; ++j) {
            if (!(mask >> j & 1)) continue;
            if (j >= count) throw std::runtime_error("a mask names a lane that the block has not");
            if (lanes[j].state == State::ended) throw std::runtime_error("a mask names a lane that has ended");
            complete = complete && lanes[j].state == State::in_warp && lanes[j].mask == mask;
            ballot |= unsigned(lanes[j].posted != 0) << j;
        }
        if (!complete) continue;
        for (size_t j = 0; j < count; ++j) {
            if (!(mask >> j & 1)) continue;
            if (!(mask >> lanes[j].lane & 1)) throw std::runtime_error("a shuffle reads a lane that takes no part");
            lanes[j].received = lanes[lanes[j].lane].posted;
            lanes[j].ballot = ballot;
            lanes[j].state = State::ready;
        }
        released = true;
    }
    return released;
}

// Lets those go on for whom all have come; nobody can run when it is called.
static void release() {
    bool released = false;
    for (size_t first = 0; first < block.threads.size(); first += WARP) released |= exchange_in_warp(first);
    if (released) return;
    for (const Thread& each : block.threads) {
        if (each.state == State::at_barrier && each.line == block.threads[0].line) continue;
        throw std::runtime_error("a barrier or an exchange within a warp is missed by some threads");
    }
    for (Thread& each : block.threads) each.state = State::ready;
}

static void run_block() {
    block.started = 0;
    for (Thread& each : block.threads) {
        each.state = State::ready;
        each.barriers = each.syncs = 0;
    }
    while (block.started < block.threads.size()) start_threads();
    for (;;) {
        bool ended = true;
        for (size_t i = 0; i < block.threads.size(); ++i) {
            Thread& next = block.in_order(i);
            if (next.state == State::ready) {
                thread = &next;
                go_on(*next.fiber);
            }
            ended = ended && next.state == State::ended;
        }
        if (ended) return;
        bool waiting = true;
        for (const Thread& each : block.threads) waiting = waiting && each.state != State::ready;
        if (waiting) release();
    }
}

UNWATCHED inline void barrier(int line) {
    thread->line = line;
    ++thread->barriers;
    wait(State::at_barrier);
}

UNWATCHED inline unsigned thread_number() {
    return (thread->index.z * block_size.y + thread->index.y) * block_size.x + thread->index.x;
}

template <typename T>
UNWATCHED T exchange(unsigned mask, T value, unsigned lane) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle takes 8 bytes at most");
    thread->mask = mask;
    thread->lane = lane;
    thread->posted = 0;
    memcpy(&thread->posted, &value, sizeof(T));
    wait(State::in_warp);
    memcpy(&value, &thread->received, sizeof(T));
    return value;
}

}  // namespace cuda_on_cpu

// The one array that a source may name `extern __shared__`; common.cuh hands it out.
alignas(128) inline thread_local unsigned char dynamic_shared_memory[cuda_on_cpu::MOST_SHARED];

namespace cuda_on_cpu {

static void run_grid(dim3 grid, dim3 threads, size_t shared, bool backwards, memory_watch::Arrays arrays,
                     std::function<void()> kernel) {
    grid_size = grid;
    block_size = threads;
    block.backwards = backwards;
    block.kernel = std::move(kernel);
    block.threads.clear();
    for (unsigned z = 0; z < threads.z; ++z)
        for (unsigned y = 0; y < threads.y; ++y)
            for (unsigned x = 0; x < threads.x; ++x) block.threads.push_back(Thread{{x, y, z}});
    cycles = 0;
    block.error.clear();
    memory_watch::begin(arrays, memory_watch::span_of(dynamic_shared_memory + shared, MOST_SHARED - shared),
                        memory_watch::span_of(block.threads.data(), block.threads.size() * sizeof(Thread)));
    const uint64_t plane = uint64_t(grid.x) * grid.y, count = plane * grid.z;
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t number = backwards ? count - 1 - i : i;
        block.number = number;
        block_index = {unsigned(number % grid.x), unsigned(number % plane / grid.x), unsigned(number / plane)};
        run_block();
    }
}

template <typename... P, size_t... I>
UNWATCHED void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
}

// Returns what went wrong, or an empty string.
template <typename... P>
const char* launch(void (*kernel)(P...), const unsigned* grid, const unsigned* threads, size_t shared, bool backwards,
                   void** arguments, memory_watch::Arrays arrays) {
    static std::string error;
    error.clear();
    try {
        run_grid({grid[0], grid[1], grid[2]}, {threads[0], threads[1], threads[2]}, shared, backwards, arrays,
                 [=] { call(kernel, arguments, std::index_sequence_for<P...>()); });
    } catch (const std::exception& exception) {
        error = exception.what();
        block.idle.clear();
        block.fibers.clear();
    }
    return error.c_str();
}

template <typename... P>
const char* signature(void (*)(P...)) {
    static const std::string names = ((name_of<P>() + ",") + ... + "");
    return names.c_str();
}

}  // namespace cuda_on_cpu

// What the stand-in for CuPy calls: after a launch, and for the kernel with that number.
extern "C" long long cycles_of_launch() { return cuda_on_cpu::cycles; }

#define KERNEL(number, ...)                                                                                      \
    extern "C" const char* signature_##number() { return cuda_on_cpu::signature(&__VA_ARGS__); }                 \
    extern "C" const char* launch_##number(const unsigned* grid, const unsigned* threads, size_t shared,         \
                                           bool backwards, void** arguments, const memory_watch::Array* arrays,  \
                                           size_t count) {                                                       \
        return cuda_on_cpu::launch(&__VA_ARGS__, grid, threads, shared, backwards, arguments, {arrays, count});  \
    }

// ---- functions

#define threadIdx (cuda_on_cpu::thread->index)
#define blockIdx (cuda_on_cpu::block_index)
#define blockDim (cuda_on_cpu::block_size)
#define gridDim (cuda_on_cpu::grid_size)
#define warpSize 32
#define __syncthreads() cuda_on_cpu::barrier(__LINE__)

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    const unsigned first = cuda_on_cpu::thread_number() % 32 & ~(width - 1);
    return cuda_on_cpu::exchange(mask, value, first + (lane & (width - 1)));
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = cuda_on_cpu::thread_number() % 32;
    return cuda_on_cpu::exchange(mask, value, (lane & (width - 1)) + delta < unsigned(width) ? lane + delta : lane);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = cuda_on_cpu::thread_number() % 32;
    return cuda_on_cpu::exchange(mask, value, (lane & (width - 1)) >= delta ? lane - delta : lane);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const unsigned lane = cuda_on_cpu::thread_number() % 32;
    return cuda_on_cpu::exchange(mask, value, ((lane & (width - 1)) ^ bits) < unsigned(width) ? lane ^ bits : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    cuda_on_cpu::exchange(mask, predicate, cuda_on_cpu::thread_number() % 32);
    return cuda_on_cpu::thread->ballot;
}

inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline void __syncwarp(unsigned mask = 0xffffffff) {
    if (mask == 0xffffffff) ++cuda_on_cpu::thread->syncs;
    __ballot_sync(mask, 0);
}
inline void __threadfence() {}
inline long long clock64() { return cuda_on_cpu::cycles += 100; }

// One thread runs at a time.
#define CUDA_ON_CPU_ATOMIC(name, after)                              \
    template <typename T>                                            \
    UNWATCHED T name(T* address, std::common_type_t<T> x) {          \
        memory_watch::atomic(address, sizeof(T));                    \
        const T before = *address;                                   \
        *address = after;                                            \
        return before;                                               \
    }
CUDA_ON_CPU_ATOMIC(atomicAdd, before + x)
CUDA_ON_CPU_ATOMIC(atomicMax, before < x ? x : before)
CUDA_ON_CPU_ATOMIC(atomicMin, x < before ? x : before)
CUDA_ON_CPU_ATOMIC(atomicExch, x)

template <typename T>
UNWATCHED T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> x) {
    memory_watch::atomic(address, sizeof(T));
    const T before = *address;
    if (before == expected) *address = x;
    return before;
}

template <typename T>
T __ldg(const T* address) {
    return *address;
}

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::bits_as<float>(x); }

template <typename T>
T max(T a, T b) {  // of a number and no number: the number, as on a device
    if constexpr (std::is_floating_point_v<T>) return fmax(a, b);
    return a < b ? b : a;
}
template <typename T>
T min(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) return fmin(a, b);
    return b < a ? b : a;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
