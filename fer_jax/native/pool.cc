// The max pooling of a ResNet's stem, 3 x 3 with stride 2 and a margin of zeros, and its gradient; called by XLA.
//
// XLA:CPU creates each of the nine shifted images; here all values are read in place. Images are NHWC and not negative.

#include "common.h"

namespace {

struct Pool {  // y[n, oh, ow, c] of x[n, h, w, c]
  int64_t n, h, w, c, oh, ow;
};

// Calls visit(row, column, is_inside) for the window's nine pixels, column by column.
template <typename Visit>
void VisitWindow(const Pool& p, int64_t oh, int64_t ow, Visit visit) {
  for (int64_t column = 2 * ow - 1; column <= 2 * ow + 1; column++)
    for (int64_t row = 2 * oh - 1; row <= 2 * oh + 1; row++)
      visit(row, column, row >= 0 && row < p.h && column >= 0 && column < p.w);
}

// The maximum of zero and a column of a window's pixels, for kLanes channels; `nan` is NaN where one of the pixels is.
struct Largest {
  Vector value = Zero(), nan = Zero();
};

template <typename T>
void Forward(ffi::ThreadPool& pool, const typename T::Element* x, typename T::Element* y, const Pool& p) {
  ParallelFor(pool, p.n * p.oh, [&](int64_t task) {
    const int64_t n = task / p.oh, oh = task % p.oh, row = p.w * p.c;
    const int64_t top = std::max<int64_t>(2 * oh - 1, 0), bottom = std::min(2 * oh + 1, p.h - 1);
    for (int64_t c = 0; c < p.c; c += kLanes) {
      // The maximum starts at zero, like the margin. That of a NaN and a number may be either: NaNs are kept apart.
      auto column = [&](int64_t w) {
        Largest largest;
        for (int64_t h = top; h <= bottom && w < p.w; h++) {
          Vector value = LoadSome<T>(x + (n * p.h + h) * row + w * p.c + c, p.c - c);
          largest.value = Max(largest.value, value);
          largest.nan = FusedMultiplyAdd(value, Zero(), largest.nan);
        }
        return largest;
      };
      Largest before;  // of the column that two windows share
      for (int64_t ow = 0; ow < p.ow; ow++) {
        const Largest at = column(2 * ow), after = column(2 * ow + 1);
        const Vector largest = Max(before.value, Max(at.value, after.value));
        StoreSome<T>(y + (task * p.ow + ow) * p.c + c, largest + (before.nan + at.nan + after.nan), p.c - c);
        before = after;
      }
    }
  });
}

// A window's gradient goes to the first of its largest pixels, in column-by-column order.
template <typename T>
void Gradient(ffi::ThreadPool& pool, const typename T::Element* x, const typename T::Element* y,
              const typename T::Element* dy, typename T::Element* dx, const Pool& p) {
  const int64_t padded = Blocks(p.c, kLanes) * kLanes;
  ParallelFor(pool, p.n, [&](int64_t n) {
    // A pixel is in up to four windows, whose gradients are summed in float32 and rounded once.
    Scratch<float> sums(p.h * p.w * padded);
    std::fill(sums.data, sums.data + p.h * p.w * padded, 0.0f);
    for (int64_t oh = 0; oh < p.oh; oh++)
      for (int64_t ow = 0; ow < p.ow; ow++)
        for (int64_t c = 0; c < p.c; c += kLanes) {
          int64_t place = ((n * p.oh + oh) * p.ow + ow) * p.c + c;
          Vector largest = LoadSome<T>(y + place, p.c - c), left = LoadSome<T>(dy + place, p.c - c);
          VisitWindow(p, oh, ow, [&](int64_t row, int64_t column, bool is_inside) {
            if (!is_inside) {
              left = WherePositive(largest, left);  // if the maximum is zero, the margin takes the gradient
              return;
            }
            Vector value = LoadSome<T>(x + ((n * p.h + row) * p.w + column) * p.c + c, p.c - c);
            Vector own = WhereEqual(value, largest, left);
            float* sum = sums.data + (row * p.w + column) * padded + c;
            StoreFloats(sum, Load(sum) + own);
            left -= own;
          });
        }
    for (int64_t pixel = 0; pixel < p.h * p.w; pixel++)
      for (int64_t c = 0; c < p.c; c += kLanes)
        StoreSome<T>(dx + (n * p.h * p.w + pixel) * p.c + c, Load(sums.data + pixel * padded + c), p.c - c);
  });
}

template <ffi::DataType dtype>
using Images = ffi::Buffer<dtype, 4>;

Pool PoolOf(ffi::Span<const int64_t> x, ffi::Span<const int64_t> y) { return {x[0], x[1], x[2], x[3], y[1], y[2]}; }

template <typename T, ffi::DataType dtype>
ffi::Error CallForward(ffi::ThreadPool pool, Images<dtype> x, ffi::Result<Images<dtype>> y) {
  Forward<T>(pool, x.typed_data(), y->typed_data(), PoolOf(x.dimensions(), y->dimensions()));
  return ffi::Error::Success();
}

template <typename T, ffi::DataType dtype>
ffi::Error CallGradient(ffi::ThreadPool pool, Images<dtype> x, Images<dtype> y, Images<dtype> dy,
                        ffi::Result<Images<dtype>> dx) {
  Gradient<T>(pool, x.typed_data(), y.typed_data(), dy.typed_data(), dx->typed_data(),
              PoolOf(x.dimensions(), y.dimensions()));
  return ffi::Error::Success();
}

}  // namespace

#define FER_JAX_HANDLERS(T, I, dtype, name)                                                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_max_pool_##name, (CallForward<T, dtype>),                    \
                                ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<I>().Ret<I>());          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                                     \
      fer_jax_max_pool_gradient_##name, (CallGradient<T, dtype>),                                    \
      ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<I>().Arg<I>().Arg<I>().Ret<I>())

FER_JAX_HANDLERS(Float32, Images<ffi::F32>, ffi::F32, float32);
#ifdef __AVX512BF16__
FER_JAX_HANDLERS(BFloat16, Images<ffi::BF16>, ffi::BF16, bfloat16);
#endif
