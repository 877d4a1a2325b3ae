// Convolutions of small images on CPU, called by XLA: forward and the gradient of the input (dx). The gradient of the
// kernel (dW) is in conv_kernel_gradient.cc.
//
// Images are NHWC and kernels HWIO with a square window, float32 or bfloat16; dW is always float32. Processors with
// AVX2 and FMA or with AVX-512 are supported, and bfloat16 with AVX512-BF16: build.py compiles for the one in use.
//
// All three passes compute blocks that are kept in the vector registers: rows x columns of sums, where the columns are
// output channels. In forward and dx with AVX-512, 6 rows x 64 columns take 24 of the 32 registers; four more hold 64
// columns of one operand, and one holds a broadcast value of the other. With AVX2, 6 rows x 16 columns take 12 of 16.
// A few loads thus feed many multiply-adds, which keeps the multipliers busy.
//
// The unit of a load is a word of four bytes: one float32, or two bfloat16 values that the processor multiplies and
// adds as a pair. A pair is two neighbouring channels in forward and dx, and the same place of two images in dW.
//
// The batch norm between two convolutions is fused with them: forward sums the moments of its values as it writes them,
// the next convolution normalises its input as it copies it (forward and dW), and its dx makes the sums for the norm's
// gradient as it is written. A trained network's norms are folded into its kernels, which are packed once, and into
// biases, which its forward adds (Activate).
//
// The results have the same bits on any number of threads: an output of forward or dx is summed by one thread in a
// fixed order; dW is summed either likewise, or in parts that belong to fixed slices of the batch and are added in the
// order of the slices, like a norm's sums.

#include "conv.h"

namespace {

#ifdef __AVX512F__
constexpr int kVectors = 4;  // in a row of a block
#else
constexpr int kVectors = 2;
#endif
constexpr int kRows = 6;                     // in a block: pixels
constexpr int kColumns = kLanes * kVectors;  // in a block
// Pixels of all images of a task that are processed together, so that their parts of both operands stay in L1 and L2.
constexpr int64_t kPlaces = 240;
// The number of tasks is a multiple of this and, since their sums for a norm are added in order, independent of the
// number of threads. With more tasks, the kernel would be read more often where a task's images have few pixels.
constexpr int64_t kTasks = 4;

// Returns the columns of the block that begins at `first`, of `out` in total: half of kColumns if the rest fits there.
int64_t ColumnsAt(int64_t first, int64_t out) {
  return kVectors == 4 && out - first <= kColumns / 2 ? kColumns / 2 : kColumns;
}

// Returns the number of all columns, including those that pad the last block.
int64_t PaddedColumns(int64_t out) {
  int64_t last = (out - 1) / kColumns * kColumns;
  return last + ColumnsAt(last, out);
}

// The taps of a window that reach the output's pixels (oh * step + a, ow * step + b), and their offsets in the input.
struct Phase {
  int64_t a, b;
  std::vector<int64_t> taps, dh, dw;
  float* packed = nullptr;  // words, [block of columns][tap][words of in][columns]
};

// Copies one block of columns of one tap's kernel to words [words of in][columns], padded with zeros.
// turned: whether in and out are exchanged, as in dx.
template <typename T>
void Pack(const typename T::Element* kernel, float* packed, int64_t ci, int64_t co, int64_t first, bool turned) {
  const int64_t in = turned ? co : ci, out = turned ? ci : co, words = Blocks(in, T::kPair);
  const int64_t columns = ColumnsAt(first, out), width = std::min(columns, out - first);
  if (!turned) {  // a word consists of two rows
    typename T::Element low[kLanes], high[kLanes];
    for (int64_t i = 0; i < words; i++, packed += columns)
      for (int64_t j = 0; j < columns; j += kLanes) {
        const auto* from = kernel + i * T::kPair * co + first + j;
        const bool has_high = (i + 1) * T::kPair <= in;  // the last of an odd number of channels is paired with zeros
        T::StoreWords(packed + j, Whole(from, width - j, kLanes, low),
                      Whole(from + (T::kPair - 1) * co, has_high ? width - j : 0, kLanes, high));
      }
    return;
  }
  // A word consists of neighbours in a row, which becomes a column. Tiles keep the scattered writes in L1.
  constexpr int64_t kTile = 4 * kLanes;
  for (int64_t top = 0; top < words; top += kTile)
    for (int64_t j = 0; j < columns; j++) {
      typename T::Element end[kTile * T::kPair];
      alignas(64) float tile[kTile];
      const auto* from = kernel + (first + j) * co + top * T::kPair;
      std::memcpy(tile, Whole(from, j < width ? in - top * T::kPair : 0, kTile * T::kPair, end), sizeof(tile));
      const int64_t count = std::min(kTile, words - top);
      for (int64_t i = 0; i < count; i++) packed[(top + i) * columns + j] = tile[i];
    }
}

// Packs the kernels of all phases to `packed`, which has room for them.
template <typename T>
void PackPhases(ffi::ThreadPool& pool, const typename T::Element* w, float* packed, std::vector<Phase>& phases,
                const Shape& s, bool turned) {
  int64_t in = turned ? s.co : s.ci, out = turned ? s.ci : s.co;
  int64_t words = Blocks(in, T::kPair);
  struct Task {
    int64_t tap, first;
    float* to;
  };
  std::vector<Task> tasks;
  for (Phase& phase : phases) {
    int64_t taps = phase.taps.size();
    phase.packed = packed;
    for (int64_t first = 0; first < out; first += kColumns)
      for (int64_t t = 0; t < taps; t++)
        tasks.push_back({phase.taps[t], first, packed + (first * taps + t * ColumnsAt(first, out)) * words});
    packed += taps * words * PaddedColumns(out);
  }
  // A task has some 30,000 weights, so that the cost of starting it is small.
  int64_t together = std::max<int64_t>(1, 32768 / (in * kColumns));
  ParallelFor(pool, Blocks(tasks.size(), together), [&](int64_t task) {
    int64_t last = std::min<int64_t>(tasks.size(), (task + 1) * together);
    for (int64_t i = task * together; i < last; i++)
      Pack<T>(w + tasks[i].tap * s.ci * s.co, tasks[i].to, s.ci, s.co, tasks[i].first, turned);
  });
}

// The inputs, besides dx, of the gradient of the norm before a convolution: `raw`, the norm's input, and the ReLU's
// mask, which is set where `active` is positive or, if that was never written, where raw * factor + shift is. `others`
// is the gradient from the other readers of x, which is added to dx.
template <typename Element>
struct NormGradient {
  const Element *raw = nullptr, *active = nullptr, *others = nullptr;
};

// What is applied to y as it is written: the bias and the shortcut, if present, are added, then a ReLU if `relu`.
template <typename Element>
struct Activation {
  const float* bias = nullptr;
  const Element* shortcut = nullptr;
  bool relu = false;
};

// Additional work that is done as results are written.
enum Also {
  kMoments,     // y and y * y are summed over all pixels, for each channel
  kGradients,   // the same sums of the masked dx and of dx * (raw - mean)
  kActivation,  // an Activation is applied to y; it may be empty
};
constexpr bool HasSums(Also also) { return also != kActivation; }

// y[n, oh * step + a, ow * step + b] = sum over the taps of phase (a, b) of x[n, oh * stride + dh, ow * stride + dw]
// times the tap's kernel; x is [n, h, w, in], y is [n, oh, ow, out]. x is padded with `low` and `high` pixels of zeros.
template <typename T>
struct Correlation {
  const typename T::Element* x;
  typename T::Element* y;
  int64_t n, h, w, in, oh, ow, out, stride, step, low, high;
  std::vector<Phase> phases;
  Norm norm;  // of x; in dx, of the array whose gradient dx is
  NormGradient<typename T::Element> gradient;
  float* sums;  // [2][out]
  Activation<typename T::Element> activation;
};

// Computes a block: kRows pixels times `vectors` vectors of output channels from `column`, over all taps and channels.
//
// pixels: pointers to x's pixels, to which a tap adds its entry of `offsets`. at: indices of y's pixels. count: number
// of pixels that enter the sums; the others repeat the last one. sums: [2][PaddedColumns(out)].
template <typename T, int vectors, Also also>
void Correlate(const Correlation<T>& c, const typename T::Element* const* pixels, const int64_t* offsets, int64_t taps,
               int64_t words, const float* packed, const int64_t* at, int64_t count, int64_t column, float* sums) {
  constexpr int columns = vectors * kLanes;
  // All loops over rows and vectors are unrolled; else the compiler keeps the block in memory, at a third of the speed.
  Vector block[kRows][vectors];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) block[r][v] = Zero();
  for (int64_t t = 0; t < taps; t++) {
    const float* from[kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) from[r] = reinterpret_cast<const float*>(pixels[r] + offsets[t]);
    for (int64_t i = 0; i < words; i++, packed += columns) {
      Vector kernel[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) kernel[v] = Load(packed + v * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; r++) {
        Vector value = Broadcast(from[r] + i);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) block[r][v] = T::MultiplyAdd(value, kernel[v], block[r][v]);
      }
    }
  }
  // Writes every `stride`-th of the values, kRows in total, to the channels from `first` on, of which `left` exist. The
  // 24 registers of the block leave eight for those of a norm: two sums, factor, shift and mean.
  auto write = [&](const Vector* values, int stride, int64_t first, int64_t left) __attribute__((always_inline)) {
    float *own = sums + first, *products = own + PaddedColumns(c.out);
    Vector sum, product, factor, shift, mean;
    if (HasSums(also)) sum = Load(own), product = Load(products);
    if (also == kGradients) mean = LoadSome<Float32>(c.norm.mean + first, left);
    if (also == kActivation && c.activation.bias) shift = LoadSome<Float32>(c.activation.bias + first, left);
    if (also == kGradients && !c.gradient.active) {
      factor = LoadSome<Float32>(c.norm.factor + first, left);
      shift = LoadSome<Float32>(c.norm.shift + first, left);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) {
      const int64_t place = at[r] + first;
      Vector value = values[r * stride], other;
      if (also == kGradients && c.gradient.others) value += LoadSome<T>(c.gradient.others + place, left);
      if (HasSums(also)) value = other = T::Round(value);  // the sums are those of the written values
      if (also == kGradients) {
        other = LoadSome<T>(c.gradient.raw + place, left);
        Vector active = c.gradient.active ? LoadSome<T>(c.gradient.active + place, left)
                                          : FusedMultiplyAdd(other, factor, shift);
        value = WherePositive(active, value);
        other -= mean;
      }
      if (also == kActivation) {
        if (c.activation.bias) value += shift;
        if (c.activation.shortcut) value += LoadSome<T>(c.activation.shortcut + place, left);
        if (c.activation.relu) value = Max(Zero(), value);
      }
      StoreSome<T>(c.y + place, value, left);
      if (HasSums(also) && r < count) {
        sum += value;
        product = FusedMultiplyAdd(value, other, product);
      }
    }
    if (HasSums(also)) StoreFloats(own, sum), StoreFloats(products, product);
  };
  if (c.out - column >= columns) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) write(&block[0][v], vectors, column + v * kLanes, kLanes);
  } else {  // from memory, in a loop: the code for parts of vectors leaves no registers for the block
    Vector copy[vectors][kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) copy[v][r] = block[r][v];
    for (int64_t v = 0, first = column; first < c.out; v++, first += kLanes) write(copy[v], 1, first, c.out - first);
  }
}

template <typename Element>
void Prefetch(const Element* from, int64_t count) {
  const char *line = reinterpret_cast<const char*>(from), *end = reinterpret_cast<const char*>(from + count);
  for (; line < end; line += 64) _mm_prefetch(line, _MM_HINT_T0);
}

// Computes a correlation, whose kernels are packed. A task owns some images. It copies them, surrounded by zeros, if
// the window reaches outside or if they are normalised, so that all blocks of columns read the copy from L2.
template <typename T, Also also>
void CorrelateImages(ffi::ThreadPool& pool, const Correlation<T>& c) {
  using Element = typename T::Element;
  const int64_t words = Blocks(c.in, T::kPair), depth = words * T::kPair, padded_out = PaddedColumns(c.out);
  const Norm norm = also == kGradients ? Norm{} : c.norm;
  const bool has_zeros = c.low > 0 || c.high > 0 || depth > c.in, is_copied = has_zeros || norm.factor;
  const int64_t width = c.low + c.w + c.high, image = (c.low + c.h + c.high) * width * depth;
  // Fewer pixels fit the cache if they have many channels, but fewer than 96 are not worth reading the kernel for.
  const int64_t pixels = c.oh * c.ow > 1 ? kPlaces : std::clamp<int64_t>(24576 / words, 96, kPlaces);
  const int64_t together = std::max<int64_t>(1, pixels * c.step * c.step / (c.oh * c.ow));
  const int64_t blocks = Blocks(c.out, kColumns), threads = pool.num_threads();
  int64_t groups = std::min(c.n, Blocks(Blocks(c.n, together), kTasks) * kTasks), parts = 1, bands = 1;
  // A trained network may be given few images. Then a task also owns only some of the columns, so that the kernel,
  // which is larger than those images, is read once; or, if there are few columns too, only some rows of each image.
  if (also == kActivation && c.step == 1 && Blocks(c.n, together) < threads) {
    parts = std::min(blocks, Blocks(threads, Blocks(c.n, together)));
    groups = std::min(c.n, std::max(Blocks(c.n, together), Blocks(threads, parts)));
    bands = std::min(c.oh, Blocks(threads, groups * parts));
  }
  const Scratch<float> sums(!HasSums(also) ? 0 : groups * 2 * padded_out);
  ParallelFor(pool, groups * parts * bands, [&](int64_t number) {
    const int64_t band = number % bands, part = number / bands % parts, task = number / bands / parts;
    const int64_t first = task * c.n / groups, images = (task + 1) * c.n / groups - first;
    const Scratch<Element> padded(is_copied ? images * image : 0);
    const Element* source = c.x + first * c.h * c.w * c.in;
    float* own = sums.data + task * 2 * padded_out;
    if (HasSums(also)) std::fill_n(own, 2 * padded_out, 0.0f);
    if (is_copied) {
      // The rows that the windows of a band reach are copied, one by one, into the middle of zeros.
      const int64_t rows = c.low + c.h + c.high;
      int64_t reach = 0;  // rows of a window below its first one
      for (int64_t dh : c.phases[0].dh) reach = std::max(reach, dh + c.low);
      const int64_t top = bands > 1 ? band * c.oh / bands * c.stride : 0;
      const int64_t bottom = bands > 1 ? std::min(rows, ((band + 1) * c.oh / bands - 1) * c.stride + reach + 1) : rows;
      for (int64_t i = 0; i < images; i++) {
        Element* to = padded.data + i * image;
        if (has_zeros) std::fill(to + top * width * depth, to + bottom * width * depth, Element{0});
        for (int64_t row = std::max(top, c.low); row < std::min(bottom, c.low + c.h); row++)
          CopyPixels<T>(source + (i * c.h + row - c.low) * c.w * c.in, to + (row * width + c.low) * depth, c.w, c.in, depth,
                        norm);
      }
      source = padded.data;
    }
    for (const Phase& phase : c.phases) {
      const int64_t taps = phase.taps.size(), rows = Blocks(c.oh - phase.a, c.step), columns = Blocks(c.ow - phase.b, c.step);
      const int64_t top = band * rows / bands, bottom = (band + 1) * rows / bands;
      const int64_t total = images * (bottom - top) * columns;
      std::vector<int64_t> offsets(taps);
      for (int64_t t = 0; t < taps; t++) offsets[t] = ((phase.dh[t] + c.low) * width + phase.dw[t] + c.low) * depth;
      const int64_t last = std::min(c.out, (part + 1) * blocks / parts * kColumns);
      for (int64_t column = part * blocks / parts * kColumns; column < last; column += kColumns) {
        auto correlate =
            ColumnsAt(column, c.out) < kColumns ? Correlate<T, (kVectors + 1) / 2, also> : Correlate<T, kVectors, also>;
        const Element* from[kRows];
        int64_t at[kRows];
        // Pixels are pointers, so a block may hold the last of a row or an image and the first of the next one.
        int64_t g = 0, i = top, j = 0;
        for (int64_t pixel = 0; pixel < total; pixel += kRows) {
          const int64_t count = std::min<int64_t>(kRows, total - pixel);
          for (int64_t p = 0; p < count; p++) {
            from[p] = source + g * image + (i * width + j) * c.stride * depth;
            at[p] = (((first + g) * c.oh + i * c.step + phase.a) * c.ow + j * c.step + phase.b) * c.out;
            if (++j == columns) {
              j = 0;
              if (++i == bottom) i = top, ++g;
            }
          }
          // The last block is padded with its last pixel, which is computed and written several times.
          std::fill(from + count, from + kRows, from[count - 1]);
          std::fill(at + count, at + kRows, at[count - 1]);
          // The processor doesn't prefetch so many streams of memory at once: the pixels of the next block, and the
          // arrays that are combined with this block's results as they are written.
          if (!is_copied && column == 0 && pixel + 2 * kRows <= total && c.stride == 1)
            Prefetch(from[kRows - 1] + depth, kRows * depth);
          for (const Element* read : {c.gradient.raw, c.gradient.active, c.gradient.others})
            for (int64_t p = 0; also == kGradients && read && p < kRows; p++)
              Prefetch(read + at[p] + column, std::min<int64_t>(kColumns, c.out - column));
          correlate(c, from, offsets.data(), taps, words, phase.packed + column * taps * words, at, count, column, own);
        }
      }
    }
  });
  if (!HasSums(also)) return;
  std::vector<double> totals(2 * padded_out);  // in float, the sums of thousands of tasks would lose digits
  for (int64_t task = 0; task < groups; task++)
    for (int64_t i = 0; i < 2 * padded_out; i++) totals[i] += sums.data[task * 2 * padded_out + i];
  for (int64_t i = 0; i < 2; i++) std::copy_n(&totals[i * padded_out], c.out, c.sums + i * c.out);
}

// Returns the shape of the same convolution, whose window is one pixel, with each pixel as an image.
Shape AsPixels(const Shape& s) { return {s.n * s.h * s.w, 1, 1, s.ci, 1, 1, s.co, 1, 1, 0}; }

// Returns the only phase of forward: all taps of a window reach all pixels of the output.
std::vector<Phase> ForwardPhases(const Shape& s) {
  Phase phase{0, 0};
  for (int64_t t = 0; t < s.k * s.k; t++) {
    phase.taps.push_back(t);
    phase.dh.push_back(t / s.k - s.pad);
    phase.dw.push_back(t % s.k - s.pad);
  }
  return {phase};
}

// Packs the kernel w for `Activate`.
template <typename T>
void PackForward(ffi::ThreadPool& pool, const typename T::Element* w, float* packed, const Shape& s) {
  std::vector<Phase> phases = ForwardPhases(s);
  PackPhases<T>(pool, w, packed, phases, s, false);
}

template <typename T>
void Forward(ffi::ThreadPool& pool, const typename T::Element* x, const typename T::Element* w,
             typename T::Element* y, Shape s, const Norm& norm, float* sums) {
  if (s.k == 1 && s.stride == 1) s = AsPixels(s);
  std::vector<Phase> phases = ForwardPhases(s);
  Scratch<float> packed(s.k * s.k * Blocks(s.ci, T::kPair) * PaddedColumns(s.co));
  PackPhases<T>(pool, w, packed.data, phases, s, false);
  auto correlate = sums ? CorrelateImages<T, kMoments> : CorrelateImages<T, kActivation>;
  correlate(pool, {x, y, s.n, s.h, s.w, s.ci, s.oh, s.ow, s.co, s.stride, 1, s.pad, s.pad, phases, norm, {}, sums, {}});
}

// Computes forward for a trained network, whose kernels are packed once and include their norm's scale.
template <typename T>
void Activate(ffi::ThreadPool& pool, const typename T::Element* x, float* packed, typename T::Element* y, Shape s,
              const Activation<typename T::Element>& activation) {
  if (s.k == 1 && s.stride == 1) s = AsPixels(s);
  std::vector<Phase> phases = ForwardPhases(s);
  phases[0].packed = packed;
  CorrelateImages<T, kActivation>(pool, {x, y, s.n, s.h, s.w, s.ci, s.oh, s.ow, s.co, s.stride, 1, s.pad, s.pad, phases, {},
                                         {}, nullptr, activation});
}

// Computes dx: dy correlated with the rotated kernel. With a stride, the pixels of dx form stride x stride phases. Each
// is reached by taps of its own, so that no zero is multiplied.
template <typename T>
void InputGradient(ffi::ThreadPool& pool, const typename T::Element* dy, const typename T::Element* w,
                   typename T::Element* dx, Shape s, const Norm& norm, const NormGradient<typename T::Element>& gradient,
                   float* sums) {
  if (s.k == 1 && s.stride == 1) s = AsPixels(s);
  std::vector<Phase> phases;
  int64_t reach = 0;  // how far outside dy a tap may read
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
      phases.push_back(phase);
    }
  Scratch<float> packed(s.k * s.k * Blocks(s.co, T::kPair) * PaddedColumns(s.ci));
  PackPhases<T>(pool, w, packed.data, phases, s, true);
  // A pixel at the end of dx may lie beyond those of the last window, by less than a stride.
  const int64_t high = reach + std::max({int64_t{0}, Blocks(s.h, s.stride) - s.oh, Blocks(s.w, s.stride) - s.ow});
  auto correlate = sums ? CorrelateImages<T, kGradients> : CorrelateImages<T, kActivation>;
  correlate(pool, {dy, dx, s.n, s.oh, s.ow, s.co, s.h, s.w, s.ci, 1, s.stride, reach, high, phases,
                   sums ? norm : Norm{}, gradient, sums, {}});
}

// --- The interface to XLA

using Numbers = ffi::Buffer<ffi::F32, 1>;

template <typename T, ffi::DataType dtype>
ffi::Error CallForward(ffi::ThreadPool pool, Images<dtype> x, Images<dtype> w, Vectors norm, ffi::Result<Images<dtype>> y,
                       ffi::Result<Vectors> sums, int64_t stride, int64_t pad) {
  Shape shape = ShapeOf(x.dimensions(), w.dimensions(), y->dimensions(), stride, pad);
  Forward<T>(pool, x.typed_data(), w.typed_data(), y->typed_data(), shape, NormOf(norm), DataOf(*sums));
  return ffi::Error::Success();
}

template <typename T, ffi::DataType dtype>
ffi::Error CallInputGradient(ffi::ThreadPool pool, Images<dtype> dy, Images<dtype> w, Vectors norm, Images<dtype> raw,
                             Images<dtype> active, Images<dtype> others, ffi::Result<Images<dtype>> dx,
                             ffi::Result<Vectors> sums, int64_t stride, int64_t pad) {
  Shape shape = ShapeOf(dx->dimensions(), w.dimensions(), dy.dimensions(), stride, pad);
  InputGradient<T>(pool, dy.typed_data(), w.typed_data(), dx->typed_data(), shape, NormOf(norm),
                   {DataOf(raw), DataOf(active), DataOf(others)}, DataOf(*sums));
  return ffi::Error::Success();
}

// packed: [words of all taps]; it may have more words than are written.
template <typename T, ffi::DataType dtype>
ffi::Error CallPack(ffi::ThreadPool pool, Images<dtype> w, ffi::Result<Numbers> packed) {
  const auto sizes = w.dimensions();
  const Shape shape = {1, 1, 1, sizes[2], 1, 1, sizes[3], sizes[0], 1, 0};
  if (int64_t(packed->element_count()) < sizes[0] * sizes[0] * Blocks(sizes[2], T::kPair) * PaddedColumns(sizes[3]))
    return ffi::Error::InvalidArgument("too little room for the packed kernel");
  PackForward<T>(pool, w.typed_data(), packed->typed_data(), shape);
  return ffi::Error::Success();
}

template <typename T, ffi::DataType dtype>
ffi::Error CallActivate(ffi::ThreadPool pool, Images<dtype> x, Numbers packed, Numbers bias,
                        Images<dtype> shortcut, ffi::Result<Images<dtype>> y, int64_t size, int64_t stride, int64_t pad,
                        bool relu) {
  // A kernel that was packed for another network or dtype may be too short.
  const int64_t words = size * size * Blocks(x.dimensions()[3], T::kPair) * PaddedColumns(y->dimensions()[3]);
  if (int64_t(packed.element_count()) < words || int64_t(bias.element_count()) != y->dimensions()[3] ||
      (shortcut.element_count() && shortcut.element_count() != y->element_count()))
    return ffi::Error::InvalidArgument("the kernel, the bias or the shortcut is not of these images");
  const int64_t kernel[] = {size};
  Shape shape = ShapeOf(x.dimensions(), {kernel, 1}, y->dimensions(), stride, pad);
  Activate<T>(pool, x.typed_data(), packed.typed_data(), y->typed_data(), shape,
              {bias.typed_data(), DataOf(shortcut), relu});
  return ffi::Error::Success();
}

}  // namespace

#define FER_JAX_HANDLERS(T, I, dtype, name)                                                                      \
  FER_JAX_HANDLER(fer_jax_conv_##name, (CallForward<T, dtype>),                                                  \
                  .Arg<I>().Arg<I>().Arg<Vectors>().Ret<I>().Ret<Vectors>());                                    \
  FER_JAX_HANDLER(fer_jax_conv_input_gradient_##name, (CallInputGradient<T, dtype>),                             \
                  .Arg<I>().Arg<I>().Arg<Vectors>().Arg<I>().Arg<I>().Arg<I>().Ret<I>().Ret<Vectors>());         \
  FER_JAX_BIND(fer_jax_conv_pack_##name, (CallPack<T, dtype>), .Arg<I>().Ret<Numbers>());                        \
  FER_JAX_BIND(fer_jax_conv_activate_##name, (CallActivate<T, dtype>),                                           \
               .Arg<I>().Arg<Numbers>().Arg<Numbers>().Arg<I>().Ret<I>().Attr<int64_t>("size")                   \
                   .Attr<int64_t>("stride").Attr<int64_t>("pad").Attr<bool>("relu"))

FER_JAX_HANDLERS(Float32, Images<ffi::F32>, ffi::F32, float32);
#ifdef __AVX512BF16__
FER_JAX_HANDLERS(BFloat16, Images<ffi::BF16>, ffi::BF16, bfloat16);
#endif
