// Finds what a device would punish and results on a CPU do not show: accesses outside of the arrays that a launch was
// given, or at addresses that are no multiple of what their type demands; shared memory that is read before it is
// written; and data races: two threads access the same memory, one of them writes, and nothing orders them.
//
// g++ calls a function before each access, by -fsanitize=thread, and where an address or an index is wrong, by
// -fsanitize=alignment,bounds. The libraries that have these functions are not linked; here are others.
//
// A barrier orders the threads of a block, a __syncwarp() of all lanes those of a warp; a shuffle orders no accesses to
// memory. Nothing orders blocks: a kernel whose blocks wait for each other, by fences and atomics, is not understood.
// Atomics do not race with each other, nor do writes of one and the same value. What memcpy and memset do is not seen,
// nor what goes wrong within the gaps of a strided array.

#include "memory_watch.h"

#include <link.h>

#include <algorithm>
#include <vector>

// Where this library begins and ends in memory, by the linker.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start, _end;

namespace memory_watch {
namespace {

constexpr unsigned WARP = 32, MOST_WARPS = 32;
constexpr uint16_t SEVERAL = WARP * MOST_WARPS;  // and a warp's number: threads of it; and MOST_WARPS: of several warps
enum Kind { reads, writes, changes };
const char* const NAMES[] = {"reads", "writes", "atomically changes"};

struct Access {
    uint32_t block;  // the launch's number stands for several; its blocks have the next ones
    uint32_t barriers;
    uint16_t syncs, thread;
};

struct Number {  // of an array; or a byte of shared memory
    Access last[3];  // of each kind; those that nothing orders are one
};

struct Memory : Span {
    size_t number_size, first;  // of its numbers
    unsigned shift;             // that divides by their size
};

struct Byte {
    const unsigned char* address;
    unsigned char value;
};

std::vector<Array> arguments;
std::vector<Memory> arrays;   // those that overlap are one
std::vector<Number> numbers;  // of shared memory, then of the arrays; earlier launches are left in them
Memory shared;
Span unasked, own, variables;
std::vector<Byte> left;  // by a thread, where another has written since, and has to leave the same
Access now;
uint32_t launch, last_block;
bool is_asked, is_watching;

unsigned warp_of(const Access& access) {
    return access.thread < SEVERAL ? access.thread / WARP : access.thread - SEVERAL;
}

bool are_ordered(const Access& first, const Access& second) {
    if (first.block != second.block) return false;
    return first.barriers != second.barriers || first.thread == second.thread ||
           (first.syncs != second.syncs && warp_of(first) == warp_of(second));
}

std::string name_of(const Access& access) {
    if (access.block == launch) return "another block";
    const std::string thread = access.thread < SEVERAL ? "thread " + std::to_string(access.thread) : "another thread";
    return thread + " of block " + std::to_string(access.block - launch - 1);
}

std::string name_of(uintptr_t address) {
    for (const Array& array : arguments)
        if (array.start <= address && address < array.stop)
            return "byte " + std::to_string(address - array.start) + " of argument " + std::to_string(array.argument);
    return "shared memory";
}

[[noreturn]] void fail(const std::string& what) {
    is_watching = false;
    left.clear();
    cuda_on_cpu::fail(name_of(now) + " " + what);
}

// Apart from what runs at every access.
[[noreturn, gnu::cold]] void fail_outside(size_t size, Kind kind) {
    fail(NAMES[kind] + (" " + std::to_string(size)) + " bytes outside of all arrays");
}
[[noreturn, gnu::cold]] void fail_for_race(uintptr_t address, Kind kind, const Access& before, Kind other) {
    fail(NAMES[kind] + (" " + name_of(address)) + ", and " + name_of(before) + " " + NAMES[other] +
         " it: nothing orders them");
}
[[gnu::cold]] void expect_same(uintptr_t address, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        const auto* byte = reinterpret_cast<const unsigned char*>(address + i);
        left.push_back({byte, *byte});
    }
}

const Memory& memory_at(uintptr_t address, size_t size, Kind kind) {
    if (shared.has(address, size)) {
        if (address + size > unasked.start && address < unasked.stop) fail("uses more shared memory than asked for");
        return shared;
    }
    for (const Memory& array : arrays)
        if (array.has(address, size)) return array;
    fail_outside(size, kind);
}

void access(const void* pointer, size_t size, Kind kind) {
    const uintptr_t address = uintptr_t(pointer);
    if (!is_watching || variables.has(address, size) || own.has(address, size)) return;
    if (uintptr_t(&__ehdr_start) <= address && address < uintptr_t(&_end)) return;  // a constant, or the emulation's
    const Memory& memory = memory_at(address, size, kind);
    const bool is_shared = &memory == &shared;
    const size_t first = (address - memory.start) >> memory.shift;
    const size_t last = (address + size - 1 - memory.start) >> memory.shift;
    for (size_t i = first; i <= last; ++i) {
        Number& number = numbers[memory.first + i];
        const uintptr_t start = memory.start + i * memory.number_size;
        const auto is_there = [=](const Access& one) {
            return is_shared ? one.block == now.block : one.block >= launch;
        };
        if (is_shared && kind == reads && !is_there(number.last[writes]) && !is_there(number.last[changes]))
            fail("reads shared memory that nobody has written");
        for (const Kind other : {reads, writes, changes}) {
            const Access& before = number.last[other];
            if (!is_there(before) || (kind == other && kind != writes) || are_ordered(before, now)) continue;
            if (kind != other) fail_for_race(start, kind, before, other);
            expect_same(start, memory.number_size);
        }
        Access& mine = number.last[kind];
        if (!is_there(mine) || are_ordered(mine, now)) {
            mine = now;
        } else {
            mine.thread = SEVERAL + (warp_of(mine) == warp_of(now) ? warp_of(now) : MOST_WARPS);
            if (mine.block != now.block) mine.block = launch;
        }
    }
}

// By a type that g++ takes for aligned.
void aligned_access(const void* pointer, size_t size, Kind kind) {
    if (is_watching && uintptr_t(pointer) % size)
        fail(NAMES[kind] + (" an address that is no multiple of " + std::to_string(size)));
    access(pointer, size, kind);
}

// Shared memory is the thread-local variables of this library.
int find_shared(dl_phdr_info* library, size_t, void*) {
    for (int i = 0; i < library->dlpi_phnum; ++i) {
        const Span found = span_of(library->dlpi_tls_data, library->dlpi_phdr[i].p_memsz);
        if (library->dlpi_phdr[i].p_type != PT_TLS || !found.has(unasked.start, 0)) continue;
        shared = {found, 1, 0, 0};
        return 1;
    }
    return 0;
}

}  // namespace

void begin(Arrays given, Span part_of_shared, Span of_emulation) {
    is_asked = given.first;
    if (!is_asked) return;
    unasked = part_of_shared;
    own = of_emulation;
    launch = ++last_block;
    dl_iterate_phdr(find_shared, nullptr);
    size_t all = shared.stop - shared.start;
    arguments.assign(given.first, given.first + given.count);
    arrays.clear();
    std::vector<Array> sorted = arguments;
    std::sort(sorted.begin(), sorted.end(), [](const Array& a, const Array& b) { return a.start < b.start; });
    for (const Array& array : sorted) {
        if (arrays.empty() || arrays.back().stop <= array.start)
            arrays.push_back({{array.start, array.stop}, array.number_size, 0, 0});
        arrays.back().stop = std::max<uintptr_t>(arrays.back().stop, array.stop);
        arrays.back().number_size = std::min<size_t>(arrays.back().number_size, array.number_size);
    }
    for (Memory& array : arrays) {
        array.first = all;
        array.shift = __builtin_ctzll(array.number_size);
        all += ((array.stop - array.start) >> array.shift) + 1;
    }
    if (numbers.size() < all) numbers.resize(all);
}

void resume(unsigned block, unsigned thread, unsigned barriers, unsigned syncs, Span of_thread) {
    now = {launch + 1 + block, barriers, uint16_t(syncs), uint16_t(thread)};
    last_block = std::max(last_block, now.block);
    variables = of_thread;
    is_watching = is_asked;
}

void pause() {
    is_watching = false;
    for (const Byte& byte : left)
        if (*byte.address != byte.value)
            fail("writes " + name_of(uintptr_t(byte.address)) + ", and others something else: nothing orders them");
    left.clear();
}

void atomic(const void* address, size_t size) { access(address, size, changes); }

}  // namespace memory_watch

extern "C" {

#define ACCESSES(size)                                                                                            \
    void __tsan_read##size(void* address) { memory_watch::aligned_access(address, size, memory_watch::reads); }   \
    void __tsan_write##size(void* address) { memory_watch::aligned_access(address, size, memory_watch::writes); } \
    void __tsan_unaligned_read##size(void* address) { memory_watch::access(address, size, memory_watch::reads); } \
    void __tsan_unaligned_write##size(void* address) { memory_watch::access(address, size, memory_watch::writes); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* address, size_t size) { memory_watch::access(address, size, memory_watch::reads); }
void __tsan_write_range(void* address, size_t size) { memory_watch::access(address, size, memory_watch::writes); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

struct Line {
    const char* file;
    unsigned line, column;
};
struct Aligned {
    Line where;
    const void* type;
    unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(const Aligned* expected, void*) {
    if (memory_watch::is_watching)
        memory_watch::fail("uses an address that is no multiple of " + std::to_string(1 << expected->log_alignment) +
                           ", in line " + std::to_string(expected->where.line));
}
void __ubsan_handle_out_of_bounds(const Line* where, void*) {
    if (memory_watch::is_watching)
        memory_watch::fail("uses an index that its array has not, in line " + std::to_string(where->line));
}
}
