// Convolutions of small images on CPU, called by XLA: forward, the gradient of the input (dx) and that of the kernel (dW).
//
// Images are NHWC and kernels HWIO with a square window, float32 or bfloat16; dW is always float32. For processors with
// AVX2 and FMA, with AVX-512, and for bfloat16 with AVX512-BF16: build.py compiles for the one that is there.
//
// All three passes are made of blocks that live in the vector registers: rows x columns of sums, where the columns are
// output channels. In forward and dx with AVX-512, 6 rows x 64 columns are 24 of the 32 registers; four more hold 64
// columns of one operand and one a value of the other, broadcast. With AVX2, 6 rows x 16 columns are 12 of the 16. So few
// loads feed many multiply-adds, which keeps the multipliers busy.
//
// What is loaded is a word of four bytes: one float32, or two bfloat16 values that the processor multiplies and adds as a
// pair. The pairs are neighbouring channels in forward and dx, and two images at the same place in dW.
//
// The batch norm between two convolutions rides along: forward sums its values' moments as it writes them, the next one's
// copies (forward and dW) normalise what they copy, and its dx sums what the norm's gradient needs as it is written.
//
// The results have the same bits on any number of threads: an output of forward and dx is summed by one thread in a fixed
// order; a dW is summed either so, or in parts that belong to fixed slices of the batch and are added in their order, as a
// norm's sums are.

#include "common.h"

namespace {

#ifdef __AVX512F__
constexpr int kVectors = 4;  // of a row of a block in forward and dx
constexpr int kGroup = 8;    // rows of a block in dW: weights of as many input channels, which 8 divides most of the time
#else
constexpr int kVectors = 2;
constexpr int kGroup = 6;
#endif
constexpr int kRows = 6;                      // of a block in forward and dx: pixels
constexpr int kColumns = kLanes * kVectors;   // of a block in forward and dx
constexpr int kGradientColumns = kLanes * 2;  // of a block in dW
constexpr int kMaxTaps = 49;                  // of a window of 7 x 7
// Places (pixels of all images of a group) that are worked on together: their parts of both operands stay in L1 and L2.
constexpr int64_t kPlaces = 240;
constexpr int64_t kGradientPlaces = 120;  // the same of dW, for L1
// Forward and dx are split into a multiple of as many tasks, whose sums for a norm are added in their order: so not of the
// number of threads. More would read the kernel more often, where a task's images are few pixels.
constexpr int64_t kTasks = 4;
// Slices of the batch that have sums of their own in dW. Fixed, so that the order of addition is.
constexpr int64_t kSlices = 16;

struct Shape {  // y[n, oh, ow, co] of x[n, h, w, ci] and a window of k x k
  int64_t n, h, w, ci, oh, ow, co, k, stride, pad;
};

// --- Forward and dx: a correlation

// The columns of the block that begins at `first`, of `out` in all: half of kColumns where those hold what is left.
int64_t ColumnsAt(int64_t first, int64_t out) {
  return kVectors == 4 && out - first <= kColumns / 2 ? kColumns / 2 : kColumns;
}

// All columns, with those that pad the last block.
int64_t PaddedColumns(int64_t out) {
  int64_t last = (out - 1) / kColumns * kColumns;
  return last + ColumnsAt(last, out);
}

// Which taps of a window reach the pixels (oh * step + a, ow * step + b) of the output, and from where.
struct Phase {
  int64_t a, b;
  std::vector<int64_t> taps, dh, dw;
  float* packed = nullptr;  // words, [block of columns][tap][words of in][columns]
};

// Copies one tap's kernel, one block of columns of it, to words [words of in][columns], with zeros for what there isn't.
// turned: whether in and out change places, as in dx.
template <typename T>
void Pack(const typename T::Element* kernel, float* packed, int64_t ci, int64_t co, int64_t first, bool turned) {
  const int64_t in = turned ? co : ci, out = turned ? ci : co, words = Blocks(in, T::kPair);
  const int64_t columns = ColumnsAt(first, out), width = std::min(columns, out - first);
  if (!turned) {  // a word is of two rows
    typename T::Element low[kLanes], high[kLanes];
    for (int64_t i = 0; i < words; i++, packed += columns)
      for (int64_t j = 0; j < columns; j += kLanes) {
        const auto* from = kernel + i * T::kPair * co + first + j;
        const bool has_high = (i + 1) * T::kPair <= in;  // the last channel of an odd number makes pairs with zeros
        T::StoreWords(packed + j, Whole(from, width - j, kLanes, low),
                      Whole(from + (T::kPair - 1) * co, has_high ? width - j : 0, kLanes, high));
      }
    return;
  }
  // A word is of neighbours in a row, which becomes a column. In tiles: what is written out of order stays in L1.
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

// Packs the kernels of all phases; `packed` has room for them.
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
  // Some 30,000 weights a task, so that starting one costs little.
  int64_t together = std::max<int64_t>(1, 32768 / (in * kColumns));
  ParallelFor(pool, Blocks(tasks.size(), together), [&](int64_t task) {
    int64_t last = std::min<int64_t>(tasks.size(), (task + 1) * together);
    for (int64_t i = task * together; i < last; i++)
      Pack<T>(w + tasks[i].tap * s.ci * s.co, tasks[i].to, s.ci, s.co, tasks[i].first, turned);
  });
}

// The batch norm and the ReLU before a convolution, of each channel: it convolves max(0, x * factor + shift).
struct Norm {
  const float *factor = nullptr, *shift = nullptr, *mean = nullptr;
};

// What the gradient of the norm before a convolution takes beside dx: `raw`, which the norm took, and the ReLU's mask, which
// is where `active` is positive, or where raw * factor + shift is if that was never written. `others` is added to dx: the
// gradient of those that take x too.
template <typename Element>
struct NormGradient {
  const Element *raw = nullptr, *active = nullptr, *others = nullptr;
};

// What is summed over all pixels, of each channel, as results are written.
enum Sums {
  kNone,
  kMoments,    // y and y * y
  kGradients,  // dx, masked, and dx * (raw - mean)
};

// y[n, oh * step + a, ow * step + b] = sum over the taps of each phase (a, b) of x[n, oh * stride + dh, ow * stride + dw]
// times the tap's kernel; x is [n, h, w, in], y [n, oh, ow, out], and x is zero outside, for `low` and `high` pixels.
template <typename T>
struct Correlation {
  const typename T::Element* x;
  typename T::Element* y;
  int64_t n, h, w, in, oh, ow, out, stride, step, low, high;
  std::vector<Phase> phases;
  Norm norm;  // of x; in dx of what dx is the gradient of
  NormGradient<typename T::Element> gradient;
  float* sums;  // [2][out]
};

// One block: kRows pixels times `vectors` of output channels, from `column` on, over all taps and channels.
//
// pixels: where x's are, which the taps are `offsets` from. at: where y's are. count: of pixels that are summed; the others
// are the last one again. sums: [2][PaddedColumns(out)].
template <typename T, int vectors, Sums kind>
void Correlate(const Correlation<T>& c, const typename T::Element* const* pixels, const int64_t* offsets, int64_t taps,
               int64_t words, const float* packed, const int64_t* at, int64_t count, int64_t column, float* sums) {
  constexpr int columns = vectors * kLanes;
  // All loops over rows and vectors are unrolled: else the compiler keeps the block in memory, at a third of the speed.
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
  // Writes kRows values, every `stride`-th, of the vector of channels from `first` on, of which `left` are there. The 24
  // registers of the block leave eight for a norm's: two sums, factor, shift and mean.
  auto write = [&](const Vector* values, int stride, int64_t first, int64_t left) __attribute__((always_inline)) {
    float *own = sums + first, *products = own + PaddedColumns(c.out);
    Vector sum, product, factor, shift, mean;
    if (kind != kNone) sum = Load(own), product = Load(products);
    if (kind == kGradients) mean = LoadSome<Float32>(c.norm.mean + first, left);
    if (kind == kGradients && !c.gradient.active) {
      factor = LoadSome<Float32>(c.norm.factor + first, left);
      shift = LoadSome<Float32>(c.norm.shift + first, left);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) {
      const int64_t place = at[r] + first;
      Vector value = values[r * stride], other;
      if (kind == kGradients && c.gradient.others) value += LoadSome<T>(c.gradient.others + place, left);
      if (kind != kNone) value = other = T::Round(value);  // the sums are of what is written
      if (kind == kGradients) {
        other = LoadSome<T>(c.gradient.raw + place, left);
        Vector active = c.gradient.active ? LoadSome<T>(c.gradient.active + place, left)
                                          : FusedMultiplyAdd(other, factor, shift);
        value = WherePositive(active, value);
        other -= mean;
      }
      StoreSome<T>(c.y + place, value, left);
      if (kind != kNone && r < count) {
        sum += value;
        product = FusedMultiplyAdd(value, other, product);
      }
    }
    if (kind != kNone) StoreFloats(own, sum), StoreFloats(products, product);
  };
  if (c.out - column >= columns) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) write(&block[0][v], vectors, column + v * kLanes, kLanes);
  } else {  // from memory, by a loop: what handles parts of vectors has no room for the block in registers
    Vector copy[vectors][kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) copy[v][r] = block[r][v];
    for (int64_t v = 0, first = column; first < c.out; v++, first += kLanes) write(copy[v], 1, first, c.out - first);
  }
}

// Copies pixels of c channels to pixels of `depth`, normalised if there is a norm.
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
      // Of a NaN and a number the maximum is the second.
      StoreSome<T>(to + j, Max(Zero(), FusedMultiplyAdd(LoadSome<T>(from + j, c - j), factor, shift)), c - j);
    }
  }
}

template <typename Element>
void Prefetch(const Element* from, int64_t count) {
  const char *line = reinterpret_cast<const char*>(from), *end = reinterpret_cast<const char*>(from + count);
  for (; line < end; line += 64) _mm_prefetch(line, _MM_HINT_T0);
}

// Computes a correlation, whose kernels are packed. A task owns some images: it copies them into zeros where the window
// reaches outside, or where they are normalised, so that the copy is read from L2 by all blocks of columns.
template <typename T, Sums kind>
void CorrelateImages(ffi::ThreadPool& pool, const Correlation<T>& c) {
  using Element = typename T::Element;
  const int64_t words = Blocks(c.in, T::kPair), depth = words * T::kPair, padded_out = PaddedColumns(c.out);
  const Norm norm = kind == kGradients ? Norm{} : c.norm;
  const bool has_zeros = c.low > 0 || c.high > 0 || depth > c.in, is_copied = has_zeros || norm.factor;
  const int64_t width = c.low + c.w + c.high, image = (c.low + c.h + c.high) * width * depth;
  // Of images with many channels fewer pixels fit the cache, but 96 are needed to be worth reading the kernel for.
  const int64_t pixels = c.oh * c.ow > 1 ? kPlaces : std::clamp<int64_t>(24576 / words, 96, kPlaces);
  const int64_t together = std::max<int64_t>(1, pixels * c.step * c.step / (c.oh * c.ow));
  const int64_t tasks = std::min(c.n, Blocks(Blocks(c.n, together), kTasks) * kTasks);
  const Scratch<float> sums(kind == kNone ? 0 : tasks * 2 * padded_out);
  ParallelFor(pool, tasks, [&](int64_t task) {
    const int64_t first = task * c.n / tasks, images = (task + 1) * c.n / tasks - first;
    const Scratch<Element> padded(is_copied ? images * image : 0);
    const Element* source = c.x + first * c.h * c.w * c.in;
    float* own = sums.data + task * 2 * padded_out;
    if (kind != kNone) std::fill_n(own, 2 * padded_out, 0.0f);
    if (is_copied) {
      // Into the middle of zeros, row by row.
      if (has_zeros) std::fill_n(padded.data, images * image, Element{0});
      for (int64_t row = 0; row < images * c.h; row++)
        CopyPixels<T>(source + row * c.w * c.in,
                      padded.data + row / c.h * image + ((c.low + row % c.h) * width + c.low) * depth, c.w, c.in, depth, norm);
      source = padded.data;
    }
    for (const Phase& phase : c.phases) {
      const int64_t taps = phase.taps.size(), rows = Blocks(c.oh - phase.a, c.step), columns = Blocks(c.ow - phase.b, c.step);
      const int64_t total = images * rows * columns;
      int64_t offsets[kMaxTaps];
      for (int64_t t = 0; t < taps; t++) offsets[t] = ((phase.dh[t] + c.low) * width + phase.dw[t] + c.low) * depth;
      for (int64_t column = 0; column < c.out; column += kColumns) {
        auto correlate =
            ColumnsAt(column, c.out) < kColumns ? Correlate<T, (kVectors + 1) / 2, kind> : Correlate<T, kVectors, kind>;
        const Element* from[kRows];
        int64_t at[kRows];
        // Pixels are pointers: the last of a row or an image and the next one's first share a block.
        int64_t g = 0, i = 0, j = 0;
        for (int64_t pixel = 0; pixel < total; pixel += kRows) {
          const int64_t count = std::min<int64_t>(kRows, total - pixel);
          for (int64_t p = 0; p < count; p++) {
            from[p] = source + g * image + (i * width + j) * c.stride * depth;
            at[p] = (((first + g) * c.oh + i * c.step + phase.a) * c.ow + j * c.step + phase.b) * c.out;
            if (++j == columns) {
              j = 0;
              if (++i == rows) i = 0, ++g;
            }
          }
          // The last block is filled up with its last pixel, which is computed and written several times.
          std::fill(from + count, from + kRows, from[count - 1]);
          std::fill(at + count, at + kRows, at[count - 1]);
          // The processor doesn't foresee that many streams of memory at once: of the next block's images, and of what
          // this block's results meet when they are written.
          if (!is_copied && column == 0 && pixel + 2 * kRows <= total && c.stride == 1)
            Prefetch(from[kRows - 1] + depth, kRows * depth);
          for (const Element* read : {c.gradient.raw, c.gradient.active, c.gradient.others})
            for (int64_t p = 0; kind == kGradients && read && p < kRows; p++)
              Prefetch(read + at[p] + column, std::min<int64_t>(kColumns, c.out - column));
          correlate(c, from, offsets, taps, words, phase.packed + column * taps * words, at, count, column, own);
        }
      }
    }
  });
  if (kind == kNone) return;
  std::vector<double> totals(2 * padded_out);  // of up to thousands of tasks, which would cost a float its last digits
  for (int64_t task = 0; task < tasks; task++)
    for (int64_t i = 0; i < 2 * padded_out; i++) totals[i] += sums.data[task * 2 * padded_out + i];
  for (int64_t i = 0; i < 2; i++) std::copy_n(&totals[i * padded_out], c.out, c.sums + i * c.out);
}

// The same convolution, whose window sees one pixel, with each pixel as an image.
Shape AsPixels(const Shape& s) { return {s.n * s.h * s.w, 1, 1, s.ci, 1, 1, s.co, 1, 1, 0}; }

template <typename T>
void Forward(ffi::ThreadPool& pool, const typename T::Element* x, const typename T::Element* w,
             typename T::Element* y, Shape s, const Norm& norm, float* sums) {
  if (s.k == 1 && s.stride == 1) s = AsPixels(s);
  std::vector<Phase> phases = {Phase{0, 0}};
  for (int64_t t = 0; t < s.k * s.k; t++) {
    phases[0].taps.push_back(t);
    phases[0].dh.push_back(t / s.k - s.pad);
    phases[0].dw.push_back(t % s.k - s.pad);
  }
  Scratch<float> packed(s.k * s.k * Blocks(s.ci, T::kPair) * PaddedColumns(s.co));
  PackPhases<T>(pool, w, packed.data, phases, s, false);
  auto correlate = sums ? CorrelateImages<T, kMoments> : CorrelateImages<T, kNone>;
  correlate(pool, {x, y, s.n, s.h, s.w, s.ci, s.oh, s.ow, s.co, s.stride, 1, s.pad, s.pad, phases, norm, {}, sums});
}

// dx: dy correlated with the turned kernel. With a stride, pixels of dx fall into stride x stride phases, each reached
// by taps of its own, so that no zero is multiplied.
template <typename T>
void InputGradient(ffi::ThreadPool& pool, const typename T::Element* dy, const typename T::Element* w,
                   typename T::Element* dx, Shape s, const Norm& norm, const NormGradient<typename T::Element>& gradient,
                   float* sums) {
  if (s.k == 1 && s.stride == 1) s = AsPixels(s);
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
      phases.push_back(phase);
    }
  Scratch<float> packed(s.k * s.k * Blocks(s.co, T::kPair) * PaddedColumns(s.ci));
  PackPhases<T>(pool, w, packed.data, phases, s, true);
  // A pixel at the end of dx may lie beyond the last window's, by less than a stride.
  const int64_t high = reach + std::max({int64_t{0}, Blocks(s.h, s.stride) - s.oh, Blocks(s.w, s.stride) - s.ow});
  auto correlate = sums ? CorrelateImages<T, kGradients> : CorrelateImages<T, kNone>;
  correlate(pool, {dy, dx, s.n, s.oh, s.ow, s.co, s.h, s.w, s.ci, 1, s.stride, reach, high, phases,
                   sums ? norm : Norm{}, gradient, sums});
}

// --- dW

// The weights are rows x columns: columns are output channels, and a block's rows are kGroup input channels at one tap,
// or, of images with fewer channels, a tap's channels and the next one's.
//
// An image (or two, as pairs of their values) is copied into the middle of zeros, as [group of channels][place][channels
// of the group]: what a block reads of it is then one run of memory, whatever the tap, and stays in L1. (In NHWC its
// channels would be every so many hundred bytes, which fall into few sets of the cache.) Groups are padded with channels
// of zeros.
struct Rows {
  explicit Rows(const Shape& s) : shape(s) {
    // A window of one pixel doesn't see what a stride passes over: only the others are copied.
    picked = s.k == 1 && s.pad == 0 ? s.stride : 1;
    step = s.stride / picked;
    height = picked > 1 ? s.oh : s.h;
    width = picked > 1 ? s.ow : s.w + 2 * s.pad;
    places = picked > 1 ? s.oh * s.ow : (s.h + 2 * s.pad) * width;
    together = std::min<int64_t>(kGroup, s.ci);
    groups = Blocks(s.ci, together);
    int64_t own = groups * s.k * s.k * together;
    count = Blocks(own, kGroup) * kGroup;
    for (int64_t r = 0; r < own; r++) {
      int64_t group = r / (s.k * s.k * together), tap = r / together % (s.k * s.k), i = r % together;
      offsets.push_back((group * places + tap / s.k * width + tap % s.k) * together + i);
      int64_t channel = group * together + i;
      weights.push_back(channel < s.ci ? tap * s.ci + channel : -1);
    }
    // The last block is filled up with rows that are computed for nothing.
    offsets.resize(count, offsets[0]);
    weights.resize(count, -1);
  }
  int64_t ImageSize() const { return groups * places * together; }
  // Copies an image, or the pairs of it and its partner where words are pairs.
  template <typename T>
  void CopyImage(const std::pair<const typename T::Element*, const typename T::Element*>& unit, float* to) const {
    std::fill(to, to + ImageSize(), 0.0f);
    for (int64_t h = 0; h < height; h++)
      for (int64_t w = 0; w < width - 2 * shape.pad; w++) {
        int64_t pixel = (h * picked * shape.w + w * picked) * shape.ci;
        const auto *a = unit.first + pixel, *b = unit.second + pixel;
        float* place = to + ((shape.pad + h) * width + shape.pad + w) * together;
        int64_t c = 0;
        for (; together == kGroup && c + kGroup <= shape.ci; c += kGroup, place += places * kGroup)
#pragma GCC unroll 8
          for (int64_t i = 0; i < kGroup; i++) place[i] = T::Word(a[c + i], b[c + i]);
        for (; c < shape.ci; c += together, place += places * together)
          for (int64_t i = 0; i < std::min(together, shape.ci - c); i++) place[i] = T::Word(a[c + i], b[c + i]);
      }
  }
  Shape shape;
  int64_t picked, step;      // strides between the pixels that are copied, and between the places of those
  int64_t height;            // rows that are copied
  int64_t width, places;     // of a copied image, with its margins
  int64_t together, groups;  // channels of a group, and how many groups there are
  int64_t count;             // of rows, a multiple of kGroup
  std::vector<int64_t> offsets;  // of each row, into a copied image
  std::vector<int64_t> weights;  // the row of dw, [k, k, ci][co], that it is; -1 of one that pads
};

// One block: adds to sums[kGroup][kGradientColumns] the products of images, at `offsets` from each place, and dy,
// [place][kGradientColumns]; of their rows of places from `top` to `bottom` - 1. are_neighbours: whether the offsets are
// the first one's and those that follow it.
template <typename T, bool are_neighbours>
void AddProducts(const Rows& all, const int64_t* offsets, float* sums, const float* image, const float* dy,
                 int64_t images, int64_t top, int64_t bottom) {
  const int64_t ow = all.shape.ow, step = all.step * all.together;
  const int64_t row = step * all.width, size = all.ImageSize();
  Vector acc[kGroup][2];
#pragma GCC unroll 8
  for (int r = 0; r < kGroup; r++) {
    acc[r][0] = Load(sums + r * kGradientColumns);
    acc[r][1] = Load(sums + r * kGradientColumns + kLanes);
  }
  for (int64_t g = 0; g < images; g++)
    for (int64_t h = top; h < bottom; h++) {
      const float* from = image + g * size + h * row + (are_neighbours ? offsets[0] : 0);
      for (int64_t c = 0; c < ow; c++, from += step, dy += kGradientColumns) {
        Vector low = Load(dy), high = Load(dy + kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kGroup; r++) {
          Vector value = Broadcast(from + (are_neighbours ? r : offsets[r]));
          acc[r][0] = T::MultiplyAdd(value, low, acc[r][0]);
          acc[r][1] = T::MultiplyAdd(value, high, acc[r][1]);
        }
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < kGroup; r++) {
    StoreFloats(sums + r * kGradientColumns, acc[r][0]);
    StoreFloats(sums + r * kGradientColumns + kLanes, acc[r][1]);
  }
}

// Adds the products of a group of images to sums, [rows first..last - 1][kGradientColumns], for one block of columns.
template <typename T>
void AddImages(const Rows& all, int64_t first, int64_t last, float* sums, const float* image, const float* dy,
               int64_t images) {
  auto add = all.together == kGroup ? AddProducts<T, true> : AddProducts<T, false>;
  // What is read again for each block of rows, dy and a group's part of the image, should stay in L1: a large image is
  // taken band by band.
  const int64_t oh = all.shape.oh, ow = all.shape.ow;
  const int64_t band = images == 1 ? std::max<int64_t>(1, kGradientPlaces / ow) : oh;
  for (int64_t top = 0; top < oh; top += band)
    for (int64_t r = first; r < last; r += kGroup)
      add(all, &all.offsets[r], sums + (r - first) * kGradientColumns, image, dy + top * ow * kGradientColumns, images,
          top, std::min(oh, top + band));
}

// Copies one block of columns of dy, [place][co], or the pairs of it and its partner, to words [place][kGradientColumns].
template <typename T>
void CopyGradient(const std::pair<const typename T::Element*, const typename T::Element*>& unit, float* to,
                  int64_t places, int64_t co, int64_t first) {
  const int64_t width = std::min<int64_t>(kGradientColumns, co - first);
  for (int64_t place = 0; place < places; place++, to += kGradientColumns) {
    const auto *a = unit.first + place * co + first, *b = unit.second + place * co + first;
    if (width == kGradientColumns) {  // which is known as it is compiled
      for (int64_t j = 0; j < kGradientColumns; j++) to[j] = T::Word(a[j], b[j]);
    } else {
      for (int64_t j = 0; j < width; j++) to[j] = T::Word(a[j], b[j]);
      std::fill(to + width, to + kGradientColumns, 0.0f);
    }
  }
}

template <typename T>
void KernelGradient(ffi::ThreadPool& pool, const typename T::Element* x, const typename T::Element* dy, float* dw,
                    Shape s, const Norm& norm) {
  using Element = typename T::Element;
  bool is_turned = false;  // whether columns are input channels, and rows output channels
  if (s.k == 1 && s.stride == 1) {
    s = {s.n, 1, s.h * s.w, s.ci, 1, s.oh * s.ow, s.co, 1, 1, 0};
    // Columns are copied by whole vectors, rows in groups: of what is used once, the wider one should be columns.
    if (s.ci > s.co) {
      is_turned = true;
      std::swap(x, dy);
      std::swap(s.ci, s.co);
    }
  }
  const Rows rows(s);
  const int64_t places = s.oh * s.ow, blocks = Blocks(s.co, kGradientColumns), image = rows.ImageSize();
  const int64_t padded = blocks * kGradientColumns, units = Blocks(s.n, T::kPair);  // images, or pairs of them
  const int64_t together = std::max<int64_t>(1, kGradientPlaces / places);
  // The last image of an odd number makes a pair with zeros.
  const int64_t pixels = s.h * s.w, largest = std::max(pixels * s.ci, places * s.co);
  const bool has_zeros = units * T::kPair > s.n;
  const Scratch<Element> zeros(has_zeros ? largest : 0);
  if (has_zeros) std::fill_n(zeros.data, largest, Element{0});
  // A unit of x or dy, an image and its partner, normalised into `scratch` if there is a norm.
  const int64_t scratch_size = norm.factor ? T::kPair * largest : 0;
  auto read = [&](const Element* all, int64_t unit, int64_t pixels, int64_t c, const Norm& norm, Element* scratch) {
    const int64_t size = pixels * c, other = unit * T::kPair + T::kPair - 1;
    std::pair<const Element*, const Element*> unit_of = {all + unit * T::kPair * size,
                                                         other < s.n ? all + other * size : zeros.data};
    if (!norm.factor) return unit_of;
    CopyPixels<T>(unit_of.first, scratch, pixels, c, c, norm);
    if (T::kPair > 1) CopyPixels<T>(unit_of.second, scratch + size, pixels, c, c, norm);
    unit_of = {scratch, scratch + (T::kPair - 1) * size};
    return unit_of;
  };
  auto read_image = [&](int64_t unit, Element* scratch) {
    return read(x, unit, pixels, s.ci, is_turned ? Norm{} : norm, scratch);
  };
  auto read_gradient = [&](int64_t unit, Element* scratch) {
    return read(dy, unit, places, s.co, is_turned ? norm : Norm{}, scratch);
  };
  auto write = [&](const float* sums, int64_t first, int64_t last, int64_t column) {
    const int64_t width = std::min<int64_t>(kGradientColumns, s.co - column);
    for (int64_t r = first; r < last; r++, sums += kGradientColumns) {
      const int64_t weight = rows.weights[r];
      if (weight < 0) continue;
      if (!is_turned) std::memcpy(dw + weight * s.co + column, sums, width * sizeof(float));
      for (int64_t j = 0; is_turned && j < width; j++) dw[(column + j) * s.ci + weight] = sums[j];
    }
  };

  // Few places and many weights: a thread owns weights and sums over all images, which are copied beforehand.
  if (units * places <= 12000 && rows.count * s.co >= 30000) {
    Scratch<float> copied(units * image), gradient(padded * units * places);
    ParallelFor(pool, units, [&](int64_t unit) {
      const Scratch<Element> scratch(scratch_size);
      rows.CopyImage<T>(read_image(unit, scratch.data), copied.data + unit * image);
      const auto from = read_gradient(unit, scratch.data);
      for (int64_t column = 0; column < s.co; column += kGradientColumns)
        CopyGradient<T>(from, gradient.data + (column * units + unit * kGradientColumns) * places, places, s.co, column);
    });
    constexpr int64_t kRowsOfTask = 24 * kGroup;
    const int64_t parts = Blocks(rows.count, kRowsOfTask);
    ParallelFor(pool, parts * blocks, [&](int64_t task) {
      const int64_t column = task / parts * kGradientColumns, first = task % parts * kRowsOfTask;
      const int64_t last = std::min(rows.count, first + kRowsOfTask);
      alignas(64) float sums[kRowsOfTask * kGradientColumns] = {};
      for (int64_t unit = 0; unit < units; unit += together)
        AddImages<T>(rows, first, last, sums, copied.data + unit * image,
                     gradient.data + (column * units + unit * kGradientColumns) * places, std::min(together, units - unit));
      write(sums, first, last, column);
    });
    return;
  }

  // Many places: a thread owns a slice of the batch and sums over it, and the slices' sums are added in order.
  const int64_t slices = std::min(kSlices, units), size = padded * rows.count, block = places * kGradientColumns;
  Scratch<float> sums(slices * size);
  ParallelFor(pool, slices, [&](int64_t slice) {
    float* own = sums.data + slice * size;
    std::fill_n(own, size, 0.0f);
    const int64_t last = (slice + 1) * units / slices;
    const Scratch<float> copied(together * image), gradient(together * block);
    const Scratch<Element> scratch(together * scratch_size);
    std::vector<std::pair<const Element*, const Element*>> from(together);
    for (int64_t unit = slice * units / slices; unit < last; unit += together) {
      const int64_t count = std::min(together, last - unit);
      for (int64_t g = 0; g < count; g++) {
        rows.CopyImage<T>(read_image(unit + g, scratch.data + g * scratch_size), copied.data + g * image);
        from[g] = read_gradient(unit + g, scratch.data + g * scratch_size);
      }
      for (int64_t column = 0; column < s.co; column += kGradientColumns) {
        for (int64_t g = 0; g < count; g++) CopyGradient<T>(from[g], gradient.data + g * block, places, s.co, column);
        AddImages<T>(rows, 0, rows.count, own + column * rows.count, copied.data, gradient.data, count);
      }
    }
  });
  const int64_t parts = Blocks(rows.count, kGroup * 8);
  ParallelFor(pool, blocks * parts, [&](int64_t task) {
    const int64_t column = task / parts * kGradientColumns;
    const int64_t first = task % parts * kGroup * 8, last = std::min(rows.count, first + kGroup * 8);
    float* total = sums.data + column * rows.count + first * kGradientColumns;
    for (int64_t slice = 1; slice < slices; slice++)
      for (int64_t i = 0; i < (last - first) * kGradientColumns; i++) total[i] += total[slice * size + i];
    write(total, first, last, column);
  });
}

// --- What XLA calls

using KernelGradients = ffi::Buffer<ffi::F32, 4>;
template <ffi::DataType dtype>
using Images = ffi::Buffer<dtype, 4>;

Shape ShapeOf(ffi::Span<const int64_t> x, ffi::Span<const int64_t> w, ffi::Span<const int64_t> y, int64_t stride,
              int64_t pad) {
  return {x[0], x[1], x[2], x[3], y[1], y[2], y[3], w[0], stride, pad};
}

using Vectors = ffi::Buffer<ffi::F32, 2>;  // [how many, channels]

// norm: factor, shift and mean; of none of them, no norm.
Norm NormOf(Vectors norm) {
  const float* data = norm.typed_data();
  const int64_t channels = norm.dimensions()[1];
  return norm.element_count() ? Norm{data, data + channels, data + 2 * channels} : Norm{};
}

// Null where none are wanted.
template <typename Buffer>
auto DataOf(Buffer& buffer) {
  return buffer.element_count() ? buffer.typed_data() : nullptr;
}

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

template <typename T, ffi::DataType dtype>
ffi::Error CallKernelGradient(ffi::ThreadPool pool, Images<dtype> x, Images<dtype> dy, Vectors norm,
                              ffi::Result<KernelGradients> dw, int64_t stride, int64_t pad) {
  Shape shape = ShapeOf(x.dimensions(), dw->dimensions(), dy.dimensions(), stride, pad);
  KernelGradient<T>(pool, x.typed_data(), dy.typed_data(), dw->typed_data(), shape, NormOf(norm));
  return ffi::Error::Success();
}

}  // namespace

#define FER_JAX_HANDLER(name, function, ...)                                                                 \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, (function),                                                            \
                                ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() __VA_ARGS__.Attr<int64_t>("stride") \
                                    .Attr<int64_t>("pad"))

#define FER_JAX_HANDLERS(T, I, dtype, name)                                                                        \
  FER_JAX_HANDLER(fer_jax_conv_##name, (CallForward<T, dtype>),                                                    \
                  .Arg<I>().Arg<I>().Arg<Vectors>().Ret<I>().Ret<Vectors>());                                      \
  FER_JAX_HANDLER(fer_jax_conv_input_gradient_##name, (CallInputGradient<T, dtype>),                               \
                  .Arg<I>().Arg<I>().Arg<Vectors>().Arg<I>().Arg<I>().Arg<I>().Ret<I>().Ret<Vectors>());           \
  FER_JAX_HANDLER(fer_jax_conv_kernel_gradient_##name, (CallKernelGradient<T, dtype>),                             \
                  .Arg<I>().Arg<I>().Arg<Vectors>().Ret<KernelGradients>())

FER_JAX_HANDLERS(Float32, Images<ffi::F32>, ffi::F32, float32);
#ifdef __AVX512BF16__
FER_JAX_HANDLERS(BFloat16, Images<ffi::BF16>, ffi::BF16, bfloat16);
#endif
