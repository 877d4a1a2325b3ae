// Code that forward, dx and dW of a convolution share: shapes, the norm before it, and the interface to XLA.

#ifndef FER_JAX_NATIVE_CONV_H_
#define FER_JAX_NATIVE_CONV_H_

#include "common.h"

namespace {

struct Shape {  // y[n, oh, ow, co] of x[n, h, w, ci] and a window of k x k
  int64_t n, h, w, ci, oh, ow, co, k, stride, pad;
};

// The batch norm and the ReLU before a convolution, for each channel: max(0, x * factor + shift) is convolved.
struct Norm {
  const float *factor = nullptr, *shift = nullptr, *mean = nullptr;
};

// Copies pixels of c channels to pixels of `depth` channels, normalised if there is a norm.
template <typename T>
void CopyPixels(const typename T::Element* from, typename T::Element* to, int64_t pixels, int64_t c, int64_t depth,
                const Norm& norm) {
  if (!norm.factor && depth == c) {
    std::memcpy(to, from, pixels * c * sizeof(*to));
    return;
  }
  for (int64_t i = 0; i < pixels; i++, from += c, to += depth) {
    if (!norm.factor) std::memcpy(to, from, c * sizeof(*to));
    for (int64_t j = 0; norm.factor && j < c; j += kLanes) {
      Vector factor = LoadSome<Float32>(norm.factor + j, c - j), shift = LoadSome<Float32>(norm.shift + j, c - j);
      // If one argument of Max is NaN, the result is the second one: here a NaN is kept.
      StoreSome<T>(to + j, Max(Zero(), FusedMultiplyAdd(LoadSome<T>(from + j, c - j), factor, shift)), c - j);
    }
  }
}

// --- The interface to XLA

template <ffi::DataType dtype>
using Images = ffi::Buffer<dtype, 4>;

Shape ShapeOf(ffi::Span<const int64_t> x, ffi::Span<const int64_t> w, ffi::Span<const int64_t> y, int64_t stride,
              int64_t pad) {
  return {x[0], x[1], x[2], x[3], y[1], y[2], y[3], w[0], stride, pad};
}

using Vectors = ffi::Buffer<ffi::F32, 2>;  // [number of vectors, channels]

// norm: factor, shift and mean, or empty for no norm.
Norm NormOf(Vectors norm) {
  const float* data = norm.typed_data();
  const int64_t channels = norm.dimensions()[1];
  return norm.element_count() ? Norm{data, data + channels, data + 2 * channels} : Norm{};
}

// Returns null for an empty buffer: an input that is missing, or a result that is unwanted.
template <typename Buffer>
auto DataOf(Buffer& buffer) {
  return buffer.element_count() ? buffer.typed_data() : nullptr;
}

}  // namespace

// Defines a handler for `function`; the remaining macro arguments bind its arguments, results and attributes.
#define FER_JAX_BIND(name, function, ...) \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, (function), ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() __VA_ARGS__)

#define FER_JAX_HANDLER(name, function, ...) \
  FER_JAX_BIND(name, function, __VA_ARGS__.Attr<int64_t>("stride").Attr<int64_t>("pad"))

#endif  // FER_JAX_NATIVE_CONV_H_
