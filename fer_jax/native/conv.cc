// Convolutions of small images on CPU, called by XLA: forward, the gradient of the input (dx) and that of the kernel (dW).
//
// float32, images NHWC, kernels HWIO with a square window, for processors with AVX2 and FMA. All three passes are made of
// blocks that live in the sixteen vector registers: 6 rows x 16 columns are twelve accumulators, two more registers hold
// 16 columns of one operand and one a value of the other, broadcast. So eight loads feed twelve multiply-adds, which is
// what keeps both of a core's multipliers busy.
//
// The results have the same bits on any number of threads: an output of forward and dx is summed by one thread in a fixed
// order; a dW is summed either so, or in parts that belong to fixed slices of the batch and are added in their order.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int kRows = 6;      // of a block: pixels in forward and dx, weights of one output channel in dW
constexpr int kColumns = 16;  // of a block: output channels, two vectors of eight
constexpr int kMaxTaps = 49;  // of a window of 7 x 7
// Places (pixels of all images of a group) that are worked on together: their parts of both operands stay in L1 and L2.
constexpr int kPlaces = 240;
// Slices of the batch that have sums of their own in dW. Fixed, so that the order of addition is.
constexpr int64_t kSlices = 16;

struct Shape {  // y[n, oh, ow, co] of x[n, h, w, ci] and a window of k x k
  int64_t n, h, w, ci, oh, ow, co, k, stride, pad;
};

// --- Threads

// Calls work(0) ... work(count - 1), each once, on this thread and those of XLA's pool; returns when all have returned.
//
// This thread is one of the pool's. If it waited for tasks that it only scheduled, and all others did the same, nothing
// would ever run. So it takes part itself until nothing is left, and waits for calls only that have begun elsewhere. A
// helper that comes late finds nothing to do; it shares the counters, which outlive this function.
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

// Memory for a call, or a thread's part of one: aligned to vectors, not initialised.
struct Scratch {
  explicit Scratch(size_t size)
      : data(static_cast<float*>(std::aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64))) {}
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
  float* data;
};

int64_t Blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// --- Forward and dx: a correlation

// Which taps of a window reach the pixels (oh * step + a, ow * step + b) of the output, and from where.
struct Phase {
  int64_t a, b;
  std::vector<int64_t> taps, dh, dw;
  const float* packed = nullptr;  // [block of columns][tap][in][kColumns]
};

// Copies the kernels of some taps to [block of columns][tap][in][kColumns], with zeros in columns that there are not.
// turned: whether in and out change places, as in dx.
void Pack(const float* w, float* packed, const std::vector<int64_t>& taps, int64_t ci, int64_t co, bool turned) {
  int64_t in = turned ? co : ci, out = turned ? ci : co;
  for (int64_t first = 0; first < out; first += kColumns) {
    int64_t width = std::min<int64_t>(kColumns, out - first);
    for (int64_t tap : taps) {
      const float* of_tap = w + tap * ci * co;
      for (int64_t i = 0; i < in; i++, packed += kColumns) {
        for (int64_t j = 0; j < width; j++)
          packed[j] = turned ? of_tap[(first + j) * co + i] : of_tap[i * co + first + j];
        std::fill(packed + width, packed + kColumns, 0.0f);
      }
    }
  }
}

// One block: `rows` pixels times kColumns output channels, over all taps and input channels.
template <int rows>
void Correlate(const float* const* pixels, const int64_t* offsets, int64_t taps, int64_t in, const float* packed,
               float* const* out, int64_t width) {
  __m256 sums[rows][2];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
  for (int64_t t = 0; t < taps; t++) {
    const float* from[rows];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) from[r] = pixels[r] + offsets[t];
    for (int64_t i = 0; i < in; i++, packed += kColumns) {
      __m256 low = _mm256_load_ps(packed), high = _mm256_load_ps(packed + 8);
#pragma GCC unroll 6
      for (int r = 0; r < rows; r++) {
        __m256 value = _mm256_broadcast_ss(from[r] + i);
        sums[r][0] = _mm256_fmadd_ps(value, low, sums[r][0]);
        sums[r][1] = _mm256_fmadd_ps(value, high, sums[r][1]);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
    if (width == kColumns) {
      _mm256_storeu_ps(out[r], sums[r][0]);
      _mm256_storeu_ps(out[r] + 8, sums[r][1]);
    } else {
      alignas(32) float all[kColumns];
      _mm256_store_ps(all, sums[r][0]);
      _mm256_store_ps(all + 8, sums[r][1]);
      std::memcpy(out[r], all, width * sizeof(float));
    }
  }
}

void CorrelateRows(int64_t rows, const float* const* pixels, const int64_t* offsets, int64_t taps, int64_t in,
                   const float* packed, float* const* out, int64_t width) {
  switch (rows) {
    case 6: return Correlate<6>(pixels, offsets, taps, in, packed, out, width);
    case 5: return Correlate<5>(pixels, offsets, taps, in, packed, out, width);
    case 4: return Correlate<4>(pixels, offsets, taps, in, packed, out, width);
    case 3: return Correlate<3>(pixels, offsets, taps, in, packed, out, width);
    case 2: return Correlate<2>(pixels, offsets, taps, in, packed, out, width);
    case 1: return Correlate<1>(pixels, offsets, taps, in, packed, out, width);
  }
}

// Copies an image [h, w, c] into the middle of zeros, [low + h + high, low + w + high, c].
void PadImage(const float* image, float* padded, int64_t h, int64_t w, int64_t c, int64_t low, int64_t high) {
  int64_t row = (low + w + high) * c;
  std::fill(padded, padded + low * row, 0.0f);
  for (int64_t i = 0; i < h; i++) {
    float* to = padded + (low + i) * row;
    std::fill(to, to + low * c, 0.0f);
    std::memcpy(to + low * c, image + i * w * c, w * c * sizeof(float));
    std::fill(to + (low + w) * c, to + row, 0.0f);
  }
  std::fill(padded + (low + h) * row, padded + (low + h + high) * row, 0.0f);
}

// y[n, oh * step + a, ow * step + b] = sum over the taps of each phase (a, b) of x[n, oh * stride + dh, ow * stride + dw]
// times the tap's kernel; x is [n, h, w, in], y [n, oh, ow, out], and x is zero outside.
void CorrelateImages(ffi::ThreadPool& pool, const float* x, float* y, int64_t n, int64_t h, int64_t w, int64_t in,
                     int64_t oh, int64_t ow, int64_t out, int64_t stride, int64_t step, int64_t low, int64_t high,
                     const std::vector<Phase>& phases) {
  bool is_padded = low > 0 || high > 0;
  int64_t width = low + w + high, image = is_padded ? (low + h + high) * width * in : h * w * in;
  // Of images with many channels fewer pixels fit the cache, but 96 are needed to be worth reading the kernel for.
  int64_t pixels = oh * ow > 1 ? kPlaces : std::clamp<int64_t>(24576 / in, 96, kPlaces);
  int64_t together = std::max<int64_t>(1, pixels * step * step / (oh * ow));
  ParallelFor(pool, Blocks(n, together), [&](int64_t task) {
    int64_t first = task * together, images = std::min(together, n - first);
    Scratch padded(is_padded ? images * image : 0);
    const float* source = x + first * h * w * in;
    if (is_padded) {
      for (int64_t g = 0; g < images; g++)
        PadImage(source + g * h * w * in, padded.data + g * image, h, w, in, low, high);
      source = padded.data;
    }
    for (const Phase& phase : phases) {
      int64_t taps = phase.taps.size(), rows = Blocks(oh - phase.a, step), columns = Blocks(ow - phase.b, step);
      int64_t offsets[kMaxTaps], total = images * rows * columns;
      for (int64_t t = 0; t < taps; t++) offsets[t] = ((phase.dh[t] + low) * width + phase.dw[t] + low) * in;
      for (int64_t column = 0; column < out; column += kColumns) {
        const float* packed = phase.packed + column * taps * in;
        const float* from[kRows];
        float* to[kRows];
        // Pixels are pointers: the last of a row or an image and the next one's first share a block.
        int64_t g = 0, r = 0, c = 0;
        for (int64_t pixel = 0; pixel < total; pixel += kRows) {
          int64_t count = std::min<int64_t>(kRows, total - pixel);
          for (int64_t p = 0; p < count; p++) {
            from[p] = source + g * image + (r * stride * width + c * stride) * in;
            to[p] = y + (((first + g) * oh + r * step + phase.a) * ow + c * step + phase.b) * out + column;
            if (++c == columns) {
              c = 0;
              if (++r == rows) r = 0, ++g;
            }
          }
          CorrelateRows(count, from, offsets, taps, in, packed, to, std::min<int64_t>(kColumns, out - column));
        }
      }
    }
  });
}

// The same convolution, whose window sees one pixel, with each pixel as an image.
Shape AsPixels(const Shape& s) { return {s.n * s.h * s.w, 1, 1, s.ci, 1, 1, s.co, 1, 1, 0}; }

void Forward(ffi::ThreadPool& pool, const float* x, const float* w, float* y, Shape s) {
  if (s.k == 1 && s.stride == 1) s = AsPixels(s);
  Phase all{0, 0};
  for (int64_t t = 0; t < s.k * s.k; t++) {
    all.taps.push_back(t);
    all.dh.push_back(t / s.k - s.pad);
    all.dw.push_back(t % s.k - s.pad);
  }
  Scratch packed(s.k * s.k * s.ci * Blocks(s.co, kColumns) * kColumns);
  Pack(w, packed.data, all.taps, s.ci, s.co, false);
  all.packed = packed.data;
  CorrelateImages(pool, x, y, s.n, s.h, s.w, s.ci, s.oh, s.ow, s.co, s.stride, 1, s.pad, s.pad, {all});
}

// dx: dy correlated with the turned kernel. With a stride, pixels of dx fall into stride x stride phases, each reached
// by taps of its own, so that no zero is multiplied.
void InputGradient(ffi::ThreadPool& pool, const float* dy, const float* w, float* dx, Shape s) {
  if (s.k == 1 && s.stride == 1) s = AsPixels(s);
  Scratch packed(s.k * s.k * s.co * Blocks(s.ci, kColumns) * kColumns);
  float* next = packed.data;
  std::vector<Phase> phases;
  int64_t reach = 0;  // how far outside of dy a tap may ask
  for (int64_t a = 0; a < std::min(s.stride, s.h); a++)
    for (int64_t b = 0; b < std::min(s.stride, s.w); b++) {
      Phase phase{a, b};
      for (int64_t t = 0; t < s.k * s.k; t++) {
        int64_t down = a + s.pad - t / s.k, right = b + s.pad - t % s.k;
        if (down % s.stride == 0 && right % s.stride == 0) {
          phase.taps.push_back(t);
          phase.dh.push_back(down / s.stride);
          phase.dw.push_back(right / s.stride);
          reach = std::max({reach, std::abs(down / s.stride), std::abs(right / s.stride)});
        }
      }
      Pack(w, next, phase.taps, s.ci, s.co, true);
      phase.packed = next;
      next += phase.taps.size() * s.co * Blocks(s.ci, kColumns) * kColumns;
      phases.push_back(phase);
    }
  // A pixel at the end of dx may lie beyond the last window's, by less than a stride.
  int64_t beyond = std::max({int64_t{0}, Blocks(s.h, s.stride) - s.oh, Blocks(s.w, s.stride) - s.ow});
  CorrelateImages(pool, dy, dx, s.n, s.oh, s.ow, s.co, s.h, s.w, s.ci, 1, s.stride, reach, reach + beyond, phases);
}

// --- dW

// The weights are rows x columns: columns are output channels, and a block's six rows are six input channels at one tap,
// or, of images with fewer channels, a tap's channels and the next one's.
//
// An image is copied into the middle of zeros, as [group of channels][place][channels of the group]: what a block reads of
// it is then one run of memory, whatever the tap, and stays in L1. (In NHWC its six channels would be every so many
// hundred bytes, which fall into few sets of the cache.) Groups are padded with channels of zeros.
struct Rows {
  explicit Rows(const Shape& s) : shape(s) {
    // A window of one pixel doesn't see what a stride passes over: only the others are copied.
    picked = s.k == 1 && s.pad == 0 ? s.stride : 1;
    step = s.stride / picked;
    height = picked > 1 ? s.oh : s.h;
    width = picked > 1 ? s.ow : s.w + 2 * s.pad;
    places = picked > 1 ? s.oh * s.ow : (s.h + 2 * s.pad) * width;
    together = std::min<int64_t>(kRows, s.ci);
    groups = Blocks(s.ci, together);
    count = groups * s.k * s.k * together;
    for (int64_t r = 0; r < count; r++) {
      int64_t group = r / (s.k * s.k * together), tap = r / together % (s.k * s.k), i = r % together;
      offsets.push_back((group * places + tap / s.k * width + tap % s.k) * together + i);
      int64_t channel = group * together + i;
      weights.push_back(channel < s.ci ? tap * s.ci + channel : -1);
    }
  }
  int64_t ImageSize() const { return groups * places * together; }
  void CopyImage(const float* image, float* to) const {
    std::fill(to, to + ImageSize(), 0.0f);
    for (int64_t h = 0; h < height; h++)
      for (int64_t w = 0; w < width - 2 * shape.pad; w++) {
        const float* pixel = image + (h * picked * shape.w + w * picked) * shape.ci;
        float* place = to + ((shape.pad + h) * width + shape.pad + w) * together;
        for (int64_t c = 0; c < shape.ci; c += together, place += places * together)
          for (int64_t i = 0; i < std::min(together, shape.ci - c); i++) place[i] = pixel[c + i];
      }
  }
  Shape shape;
  int64_t picked, step;      // strides between the pixels that are copied, and between the places of those
  int64_t height;            // rows that are copied
  int64_t width, places;     // of a copied image, with its margins
  int64_t together, groups;  // channels of a group, and how many groups there are
  int64_t count;
  std::vector<int64_t> offsets;  // of each row, into a copied image
  std::vector<int64_t> weights;  // the row of dw, [k, k, ci][co], that it is; -1 of a channel that pads
};

// One block: adds to sums[rows][kColumns] the products of images, at `offsets` from each place, and dy, [place][kColumns].
// are_neighbours: whether the offsets are the first one's and the five that follow it.
template <int rows, bool are_neighbours>
void AddProducts(const Rows& all, const int64_t* offsets, float* sums, const float* image, const float* dy,
                 int64_t images) {
  const int64_t oh = all.shape.oh, ow = all.shape.ow, step = all.step * all.together;
  const int64_t row = step * all.width, size = all.ImageSize();
  // All loops over the rows are unrolled: else the compiler keeps the sums in memory, at a third of the speed.
  __m256 acc[rows][2];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
    acc[r][0] = _mm256_loadu_ps(sums + r * kColumns);
    acc[r][1] = _mm256_loadu_ps(sums + r * kColumns + 8);
  }
  for (int64_t g = 0; g < images; g++)
    for (int64_t h = 0; h < oh; h++) {
      const float* from = image + g * size + h * row + (are_neighbours ? offsets[0] : 0);
      for (int64_t c = 0; c < ow; c++, from += step, dy += kColumns) {
        __m256 low = _mm256_load_ps(dy), high = _mm256_load_ps(dy + 8);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
          __m256 value = _mm256_broadcast_ss(from + (are_neighbours ? r : offsets[r]));
          acc[r][0] = _mm256_fmadd_ps(value, low, acc[r][0]);
          acc[r][1] = _mm256_fmadd_ps(value, high, acc[r][1]);
        }
      }
    }
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
    _mm256_storeu_ps(sums + r * kColumns, acc[r][0]);
    _mm256_storeu_ps(sums + r * kColumns + 8, acc[r][1]);
  }
}

// Adds the products of a group of images to sums, [rows first..last - 1][kColumns], for one block of columns.
void AddImages(const Rows& all, int64_t first, int64_t last, float* sums, const float* image, const float* dy,
               int64_t images) {
  for (int64_t r = first; r < last; r += kRows, sums += kRows * kColumns) {
    const int64_t* offsets = &all.offsets[r];
    switch (std::min<int64_t>(kRows, last - r)) {
      case 6:
        if (all.together == kRows) AddProducts<6, true>(all, offsets, sums, image, dy, images);
        else AddProducts<6, false>(all, offsets, sums, image, dy, images);
        break;
      case 5: AddProducts<5, false>(all, offsets, sums, image, dy, images); break;
      case 4: AddProducts<4, false>(all, offsets, sums, image, dy, images); break;
      case 3: AddProducts<3, false>(all, offsets, sums, image, dy, images); break;
      case 2: AddProducts<2, false>(all, offsets, sums, image, dy, images); break;
      case 1: AddProducts<1, false>(all, offsets, sums, image, dy, images); break;
    }
  }
}

// Copies one block of columns of dy, [place][co], to [place][kColumns].
void CopyGradient(const float* dy, float* to, int64_t places, int64_t co, int64_t column) {
  int64_t width = std::min<int64_t>(kColumns, co - column);
  for (int64_t place = 0; place < places; place++, to += kColumns) {
    std::memcpy(to, dy + place * co + column, width * sizeof(float));
    std::fill(to + width, to + kColumns, 0.0f);
  }
}

void KernelGradient(ffi::ThreadPool& pool, const float* x, const float* dy, float* dw, Shape s) {
  if (s.k == 1 && s.stride == 1) s = {s.n, 1, s.h * s.w, s.ci, 1, s.oh * s.ow, s.co, 1, 1, 0};
  const Rows rows(s);
  int64_t places = s.oh * s.ow, blocks = Blocks(s.co, kColumns), image = rows.ImageSize();
  int64_t together = std::max<int64_t>(1, kPlaces / places);
  auto copy = [&](int64_t n, float* to) { rows.CopyImage(x + n * s.h * s.w * s.ci, to); };
  auto write = [&](const float* sums, int64_t first, int64_t last, int64_t column) {
    for (int64_t r = first; r < last; r++, sums += kColumns)
      if (rows.weights[r] >= 0)
        std::memcpy(dw + rows.weights[r] * s.co + column, sums,
                    std::min<int64_t>(kColumns, s.co - column) * sizeof(float));
  };

  // Few places and many weights: a thread owns weights and sums over all images, which are copied beforehand.
  if (s.n * places <= 12000 && rows.count * s.co >= 30000) {
    Scratch copied(s.n * image), gradient(blocks * s.n * places * kColumns);
    ParallelFor(pool, s.n, [&](int64_t n) {
      copy(n, copied.data + n * image);
      for (int64_t b = 0; b < blocks; b++)
        CopyGradient(dy + n * places * s.co, gradient.data + (b * s.n + n) * places * kColumns, places, s.co,
                     b * kColumns);
    });
    constexpr int64_t kRowsOfTask = 16 * kRows;
    int64_t parts = Blocks(rows.count, kRowsOfTask);
    ParallelFor(pool, parts * blocks, [&](int64_t task) {
      int64_t block = task / parts, first = task % parts * kRowsOfTask;
      int64_t last = std::min(rows.count, first + kRowsOfTask);
      alignas(32) float sums[kRowsOfTask * kColumns] = {};
      for (int64_t n = 0; n < s.n; n += together)
        AddImages(rows, first, last, sums, copied.data + n * image,
                  gradient.data + (block * s.n + n) * places * kColumns, std::min(together, s.n - n));
      write(sums, first, last, block * kColumns);
    });
    return;
  }

  // Many places: a thread owns a slice of the batch and sums over it, and the slices' sums are added in order.
  int64_t slices = std::min(kSlices, s.n), size = blocks * rows.count * kColumns;
  Scratch sums(slices * size);
  ParallelFor(pool, slices, [&](int64_t slice) {
    float* own = sums.data + slice * size;
    std::fill(own, own + size, 0.0f);
    int64_t last = (slice + 1) * s.n / slices;
    Scratch copied(together * image), gradient(together * places * kColumns);
    for (int64_t n = slice * s.n / slices; n < last; n += together) {
      int64_t images = std::min(together, last - n);
      for (int64_t g = 0; g < images; g++) copy(n + g, copied.data + g * image);
      for (int64_t b = 0; b < blocks; b++) {
        CopyGradient(dy + n * places * s.co, gradient.data, images * places, s.co, b * kColumns);
        AddImages(rows, 0, rows.count, own + b * rows.count * kColumns, copied.data, gradient.data, images);
      }
    }
  });
  ParallelFor(pool, blocks, [&](int64_t b) {
    float* total = sums.data + b * rows.count * kColumns;
    for (int64_t slice = 1; slice < slices; slice++)
      for (int64_t i = 0; i < rows.count * kColumns; i++) total[i] += total[slice * size + i];
    write(total, 0, rows.count, b * kColumns);
  });
}

// --- What XLA calls

using Array = ffi::Buffer<ffi::F32, 4>;
using Out = ffi::Result<Array>;

Shape ShapeOf(ffi::Span<const int64_t> x, ffi::Span<const int64_t> w, ffi::Span<const int64_t> y, int64_t stride,
              int64_t pad) {
  return {x[0], x[1], x[2], x[3], y[1], y[2], y[3], w[0], stride, pad};
}

ffi::Error CallForward(ffi::ThreadPool pool, Array x, Array w, Out y, int64_t stride, int64_t pad) {
  Shape shape = ShapeOf(x.dimensions(), w.dimensions(), y->dimensions(), stride, pad);
  Forward(pool, x.typed_data(), w.typed_data(), y->typed_data(), shape);
  return ffi::Error::Success();
}

ffi::Error CallInputGradient(ffi::ThreadPool pool, Array dy, Array w, Out dx, int64_t stride, int64_t pad) {
  Shape shape = ShapeOf(dx->dimensions(), w.dimensions(), dy.dimensions(), stride, pad);
  InputGradient(pool, dy.typed_data(), w.typed_data(), dx->typed_data(), shape);
  return ffi::Error::Success();
}

ffi::Error CallKernelGradient(ffi::ThreadPool pool, Array x, Array dy, Out dw, int64_t stride, int64_t pad) {
  Shape shape = ShapeOf(x.dimensions(), dw->dimensions(), dy.dimensions(), stride, pad);
  KernelGradient(pool, x.typed_data(), dy.typed_data(), dw->typed_data(), shape);
  return ffi::Error::Success();
}

}  // namespace

#define FER_JAX_HANDLER(name, function)                                                     \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                                             \
                                ffi::Ffi::Bind()                                            \
                                    .Ctx<ffi::ThreadPool>()                                 \
                                    .Arg<Array>()                                           \
                                    .Arg<Array>()                                           \
                                    .Ret<Array>()                                           \
                                    .Attr<int64_t>("stride")                                \
                                    .Attr<int64_t>("pad"))

FER_JAX_HANDLER(fer_jax_conv, CallForward);
FER_JAX_HANDLER(fer_jax_conv_input_gradient, CallInputGradient);
FER_JAX_HANDLER(fer_jax_conv_kernel_gradient, CallKernelGradient);
