// The sums over all pixels, for each channel, that batch normalisation needs; called by XLA.
//
// XLA:CPU first writes each value that it sums to memory in float32; here bfloat16 is read once and nothing is written.
// The results have the same bits on any number of threads: each slice of the pixels has its own sums, which are added
// in the order of the slices.

#include "common.h"

namespace {

constexpr int64_t kSlices = 64;  // fixed, so that the order of addition is fixed too
constexpr int64_t kRows = 16;    // pixels that are summed in registers before the sums go back to memory

// Sums two values over all pixels, for each channel, to sums[0][channel] and sums[1][channel].
//
// operands: arrays [rows, channels]. add(values, channel, first, second) computes the two values from vectors of the
// operands' values at the kLanes channels from `channel` on, and adds them to the sums `first` and `second`.
template <typename T, int count, typename Add>
void SumChannels(ffi::ThreadPool& pool, const typename T::Element* const (&operands)[count], int64_t rows,
                 int64_t channels, float* sums, Add add) {
  const int64_t padded = Blocks(channels, kLanes) * kLanes, slices = std::min(kSlices, Blocks(rows, kRows));
  Scratch<float> parts(slices * 2 * padded);
  ParallelFor(pool, slices, [&](int64_t slice) {
    float* own = parts.data + slice * 2 * padded;
    std::fill(own, own + 2 * padded, 0.0f);
    const int64_t last = (slice + 1) * rows / slices;
    for (int64_t r = slice * rows / slices; r < last; r += kRows)
      for (int64_t c = 0; c < padded; c += kLanes) {
        Vector first = Load(own + c), second = Load(own + padded + c);
        for (int64_t i = r; i < std::min(last, r + kRows); i++) {
          Vector values[count];
          for (int o = 0; o < count; o++) values[o] = LoadSome<T>(operands[o] + i * channels + c, channels - c);
          add(values, c, first, second);
        }
        StoreFloats(own + c, first);
        StoreFloats(own + padded + c, second);
      }
  });
  for (int64_t kind = 0; kind < 2; kind++)
    for (int64_t c = 0; c < channels; c++) {
      float total = 0;
      for (int64_t slice = 0; slice < slices; slice++) total += parts.data[(slice * 2 + kind) * padded + c];
      sums[kind * channels + c] = total;
    }
}

template <ffi::DataType dtype>
using Array = ffi::Buffer<dtype, 2>;
using Vectors = ffi::Buffer<ffi::F32, 2>;
using OneVector = ffi::Buffer<ffi::F32, 1>;

// The sums of x and of its squares.
template <typename T, ffi::DataType dtype>
ffi::Error CallMoments(ffi::ThreadPool pool, Array<dtype> x, ffi::Result<Vectors> sums) {
  SumChannels<T, 1>(pool, {x.typed_data()}, x.dimensions()[0], x.dimensions()[1], sums->typed_data(),
                    [](const Vector* values, int64_t, Vector& sum, Vector& squares) {
                      sum += values[0];
                      squares = FusedMultiplyAdd(values[0], values[0], squares);
                    });
  return ffi::Error::Success();
}

// The sums of dy and of dy * (x - mean); with relu, dy counts only where y is positive.
template <typename T, ffi::DataType dtype>
ffi::Error CallGradientSums(ffi::ThreadPool pool, Array<dtype> dy, Array<dtype> x, Array<dtype> y, OneVector mean,
                            ffi::Result<Vectors> sums, int64_t relu) {
  const int64_t rows = x.dimensions()[0], channels = x.dimensions()[1];
  const float* means = mean.typed_data();
  auto sum = [&](Vector dy, Vector x, int64_t channel, Vector& total, Vector& products) {
    total += dy;
    products = FusedMultiplyAdd(dy, x - LoadSome<Float32>(means + channel, channels - channel), products);
  };
  if (relu) {
    SumChannels<T, 3>(pool, {dy.typed_data(), x.typed_data(), y.typed_data()}, rows, channels, sums->typed_data(),
                      [&](const Vector* values, int64_t channel, Vector& total, Vector& products) {
                        sum(WherePositive(values[2], values[0]), values[1], channel, total, products);
                      });
  } else {
    SumChannels<T, 2>(pool, {dy.typed_data(), x.typed_data()}, rows, channels, sums->typed_data(),
                      [&](const Vector* values, int64_t channel, Vector& total, Vector& products) {
                        sum(values[0], values[1], channel, total, products);
                      });
  }
  return ffi::Error::Success();
}

}  // namespace

#define FER_JAX_HANDLERS(T, dtype, name)                                                               \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                                       \
      fer_jax_moments_##name, (CallMoments<T, dtype>),                                                 \
      ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array<dtype>>().Ret<Vectors>());                     \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_gradient_sums_##name, (CallGradientSums<T, dtype>),            \
                                ffi::Ffi::Bind()                                                       \
                                    .Ctx<ffi::ThreadPool>()                                            \
                                    .Arg<Array<dtype>>()                                               \
                                    .Arg<Array<dtype>>()                                               \
                                    .Arg<Array<dtype>>()                                               \
                                    .Arg<OneVector>()                                                  \
                                    .Ret<Vectors>()                                                    \
                                    .Attr<int64_t>("relu"))

FER_JAX_HANDLERS(Float32, ffi::F32, float32);
#ifdef __AVX512BF16__
FER_JAX_HANDLERS(BFloat16, ffi::BF16, bfloat16);
#endif
