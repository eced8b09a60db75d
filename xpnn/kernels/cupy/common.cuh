// What the sources share: types, elementwise passes over memory, sums and maxima over a warp or a block.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef long long i64;
typedef unsigned long long u64;

constexpr int WARP = 32, MOST_WARPS = 32;
constexpr unsigned ALL_LANES = 0xffffffff;

// Acc<T>: what numbers of type T are computed in. Half types are for memory only.
template <typename T>
struct Computation {
    typedef T Type;
};
template <>
struct Computation<__half> {
    typedef float Type;
};
template <>
struct Computation<__nv_bfloat16> {
    typedef float Type;
};
template <typename T>
using Acc = typename Computation<T>::Type;

template <typename T>
__device__ __forceinline__ Acc<T> widen(T x) {
    return x;
}
template <>
__device__ __forceinline__ float widen(__half x) {
    return __half2float(x);
}
template <>
__device__ __forceinline__ float widen(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

template <typename T>
__device__ __forceinline__ T narrow(Acc<T> x) {
    return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
    return __float2half(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
    return __float2bfloat16(x);
}

// Numbers that differ from step to step: those at a place in memory instead, where there is one. A launch that is
// recorded keeps its arguments.
template <typename A, typename... N>
__device__ __forceinline__ void look_up(const A* place, N&... numbers) {
    if (place) ((numbers = *place++), ...);
}

// ---- one pass over memory

// An array as `each` takes it: read, written, or both.
template <typename T>
struct In {
    const T* memory;
};
template <typename T>
struct Out {
    T* memory;
};
template <typename T>
struct InOut {
    T* memory;
};
template <typename T>
__device__ In<T> in(const T* memory) { return {memory}; }
template <typename T>
__device__ Out<T> out(T* memory) { return {memory}; }
template <typename T>
__device__ InOut<T> in_out(T* memory) { return {memory}; }

// K numbers in memory, moved by one instruction; and in registers, to compute with.
template <typename T, int K>
struct alignas(sizeof(T) * K) Pack {
    T number[K];
};
template <typename T, int K>
struct Numbers {
    Acc<T> number[K];
};

template <int K, typename T>
__device__ __forceinline__ Numbers<T, K> read(const T* memory) {
    const Pack<T, K> pack = *reinterpret_cast<const Pack<T, K>*>(memory);
    Numbers<T, K> numbers;
    for (int k = 0; k < K; ++k) numbers.number[k] = widen(pack.number[k]);
    return numbers;
}
template <int K, typename T>
__device__ __forceinline__ void write(T* memory, const Numbers<T, K>& numbers) {
    Pack<T, K> pack;
    for (int k = 0; k < K; ++k) pack.number[k] = narrow<T>(numbers.number[k]);
    *reinterpret_cast<Pack<T, K>*>(memory) = pack;
}

template <int K, typename T>
__device__ __forceinline__ Numbers<T, K> load(In<T> array, i64 i) { return read<K>(array.memory + i); }
template <int K, typename T>
__device__ __forceinline__ Numbers<T, K> load(InOut<T> array, i64 i) { return read<K>(array.memory + i); }
template <int K, typename T>
__device__ __forceinline__ Numbers<T, K> load(Out<T>, i64) { return {}; }

template <int K, typename T>
__device__ __forceinline__ void store(In<T>, i64, const Numbers<T, K>&) {}
template <int K, typename T>
__device__ __forceinline__ void store(InOut<T> array, i64 i, const Numbers<T, K>& x) { write<K>(array.memory + i, x); }
template <int K, typename T>
__device__ __forceinline__ void store(Out<T> array, i64 i, const Numbers<T, K>& x) { write<K>(array.memory + i, x); }

template <int K, typename F, typename... Arrays>
__device__ __forceinline__ void each_of_pack(i64 i, F& f, Arrays... arrays) {
    [&](auto... numbers) {
        for (int k = 0; k < K; ++k) f(numbers.number[k]...);
        (store<K>(arrays, i, numbers), ...);
    }(load<K>(arrays, i)...);
}

__device__ constexpr int smallest(int a) { return a; }
template <typename... Rest>
__device__ constexpr int smallest(int a, int b, Rest... rest) { return smallest(a < b ? a : b, rest...); }

// f(numbers of the arrays...) for each of n places, the numbers as Acc<T>:
//     each(n, [=](float w, float& v) { v = a * w; }, in(w), out(v));
// A thread takes 16 bytes at a time where the arrays lie on such boundaries, or else single numbers.
template <typename F, typename... Arrays>
__device__ void each(i64 n, F f, Arrays... arrays) {
    constexpr int K = smallest(int(16 / sizeof(*arrays.memory))...);
    const i64 start = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = (i64)gridDim.x * blockDim.x;
    const bool aligned = ((reinterpret_cast<u64>(arrays.memory) % (K * sizeof(*arrays.memory)) == 0) && ...);
    const i64 packs = aligned ? n / K : 0;
    for (i64 i = start; i < packs; i += step) each_of_pack<K>(K * i, f, arrays...);
    for (i64 i = K * packs + start; i < n; i += step) each_of_pack<1>(i, f, arrays...);
}

// ---- reductions: every thread of the warp or block calls them, and every thread gets the result

struct Sum {
    template <typename A>
    __device__ A operator()(A a, A b) const { return a + b; }
};
struct Max {  // no number where one is no number
    template <typename A>
    __device__ A operator()(A a, A b) const { return a < b || b != b ? b : a; }
};

template <typename Op, typename A>
__device__ __forceinline__ A warp_reduce(A x, Op op) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = op(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// For blocks of whole warps, along x. In an order of its own, but always the same one.
template <typename Op, typename A>
__device__ __forceinline__ A block_reduce(A x, Op op) {
    __shared__ A of_warps[MOST_WARPS];
    x = warp_reduce(x, op);
    __syncthreads();  // until all have read what an earlier call has left here
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = x;
    __syncthreads();
    x = of_warps[0];
    for (int warp = 1; warp < int(blockDim.x) / WARP; ++warp) x = op(x, of_warps[warp]);
    return x;
}

// The memory that a launch asks for by shared_mem=, aligned to 16 bytes.
template <typename T>
__device__ T* shared_memory() {
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
    return reinterpret_cast<T*>(dynamic_shared_memory);
}
