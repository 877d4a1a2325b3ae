// The basis of the native code: vectors, the words that they consist of, memory, and XLA's threads.

#ifndef FER_JAX_NATIVE_COMMON_H_
#define FER_JAX_NATIVE_COMMON_H_

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {  // each file is compiled separately, and the library exports only its handlers

namespace ffi = xla::ffi;

// --- Vectors and words. The compiler supports operators such as + and - on vectors.

#ifdef __AVX512F__
using Vector = __m512;
constexpr int kLanes = 16;  // words of a vector
Vector Zero() { return _mm512_setzero_ps(); }
Vector Load(const float* from) { return _mm512_loadu_ps(from); }
Vector Broadcast(const float* from) { return _mm512_set1_ps(*from); }
void StoreFloats(float* to, Vector v) { _mm512_storeu_ps(to, v); }
Vector Max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
Vector FusedMultiplyAdd(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
Vector WherePositive(Vector a, Vector b) {  // b where a > 0, else 0
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, Zero(), _CMP_GT_OQ), b);
}
Vector WhereEqual(Vector a, Vector b, Vector c) {  // c where a == b, else 0
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), c);
}
#else
using Vector = __m256;
constexpr int kLanes = 8;
Vector Zero() { return _mm256_setzero_ps(); }
Vector Load(const float* from) { return _mm256_loadu_ps(from); }
Vector Broadcast(const float* from) { return _mm256_broadcast_ss(from); }
void StoreFloats(float* to, Vector v) { _mm256_storeu_ps(to, v); }
Vector Max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
Vector FusedMultiplyAdd(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
Vector WherePositive(Vector a, Vector b) { return _mm256_and_ps(_mm256_cmp_ps(a, Zero(), _CMP_GT_OQ), b); }
Vector WhereEqual(Vector a, Vector b, Vector c) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ), c); }
#endif

struct Float32 {
  using Element = float;
  static constexpr int kPair = 1;  // elements of a word
  static Vector MultiplyAdd(Vector a, Vector b, Vector sum) { return FusedMultiplyAdd(a, b, sum); }
  static Vector LoadElements(const Element* from) { return Load(from); }
  static void Store(Element* to, Vector v) { StoreFloats(to, v); }
  static Vector Round(Vector v) { return v; }  // to an element's precision
  static float Word(float a, float) { return a; }
  // Stores kLanes words that are made of a's values and b's.
  static void StoreWords(float* to, const Element* a, const Element*) { StoreFloats(to, Load(a)); }
};

#ifdef __AVX512BF16__
struct BFloat16 {
  using Element = uint16_t;
  static constexpr int kPair = 2;
  static Vector MultiplyAdd(Vector a, Vector b, Vector sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  static Vector LoadElements(const Element* from) {  // as float32
    __m256i elements = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(elements), 16));
  }
  static void Store(Element* to, Vector v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(v));
  }
  static Vector Round(Vector v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)), 16));
  }
  static float Word(Element a, Element b) {
    uint32_t bits = a | static_cast<uint32_t>(b) << 16;
    float word;
    std::memcpy(&word, &bits, sizeof(word));
    return word;
  }
  static void StoreWords(float* to, const Element* a, const Element* b) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
};
#endif

// Returns a pointer to `size` elements: `from` if its `count` elements are enough, otherwise `end`, to which they are
// copied, followed by zeros.
template <typename Element>
const Element* Whole(const Element* from, int64_t count, int64_t size, Element* end) {
  if (count >= size) return from;
  count = std::max<int64_t>(count, 0);
  std::fill(std::copy_n(from, count, end), end + size, Element{0});
  return end;
}

// Loads or stores `width` elements, at most kLanes, as float32; missing elements are zero.
template <typename T>
Vector LoadSome(const typename T::Element* from, int64_t width) {
  typename T::Element end[kLanes];
  return T::LoadElements(Whole(from, width, kLanes, end));
}

template <typename T>
void StoreSome(typename T::Element* to, Vector values, int64_t width) {
  if (width >= kLanes) return T::Store(to, values);
  typename T::Element end[kLanes];
  T::Store(end, values);
  std::copy_n(end, width, to);
}

int64_t Blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// Memory for a call, or for a thread's part of a call, aligned to vectors and not initialised.
template <typename Element>
struct Scratch {
  explicit Scratch(size_t size)
      : data(static_cast<Element*>(std::aligned_alloc(64, (size * sizeof(Element) + 63) / 64 * 64))) {
    if (data || !size) return;
    // An exception would end this call while other threads are still working for it.
    std::fprintf(stderr, "fer_jax: there is no memory for %zu MB of a convolution\n", size * sizeof(Element) >> 20);
    std::abort();
  }
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
  Element* data;
};

// --- Threads

// Calls work(0) ... work(count - 1), each once, on this thread and those of XLA's pool; returns when all have returned.
//
// This thread belongs to the pool. If it only waited for tasks that it scheduled, and all other threads did the same,
// nothing would ever run. So it makes calls itself until none is left, and waits only for calls that have begun on
// other threads. A helper that starts late finds nothing to do; it shares the counters, which outlive this function.
void ParallelFor(ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> work) {
  struct Shared {
    std::function<void(int64_t)> work;
    int64_t count;
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
    void Take() {
      for (int64_t i = next++; i < count; i = next++) {
        work(i);
        if (++done == count) {
          std::lock_guard<std::mutex> lock(mutex);
          finished.notify_all();
        }
      }
    }
  };
  auto shared = std::make_shared<Shared>();
  shared->work = std::move(work);
  shared->count = count;
  int64_t helpers = std::min<int64_t>(count, pool.num_threads()) - 1;
  for (int64_t i = 0; i < helpers; i++) pool.Schedule([shared] { shared->Take(); });
  shared->Take();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == shared->count; });
}

}  // namespace

#endif  // FER_JAX_NATIVE_COMMON_H_
