// The gradient of a convolution's kernel (dW), called by XLA; conv.cc describes the design that all three passes share.

#include "conv.h"

namespace {

#ifdef __AVX512F__
constexpr int kGroup = 8;  // rows of a block: weights of 8 input channels, since 8 usually divides their number
#else
constexpr int kGroup = 6;
#endif
constexpr int kColumns = kLanes * 2;  // in a block
// Places (pixels of all images of a group) that are processed together: their parts of both operands stay in L1.
constexpr int64_t kPlaces = 120;
// Slices of the batch that have sums of their own. Their number is fixed, so that the order of addition is fixed too.
constexpr int64_t kSlices = 16;

// The weights are rows x columns: columns are output channels, and a block's rows are kGroup input channels at one tap
// or, for images with fewer channels, a tap's channels followed by the next tap's.
//
// An image (or two, as pairs of their values) is copied into zeros, as [group of channels][place][channels of the
// group]. A block then reads one contiguous part of memory, for any tap, which stays in L1. (In NHWC its channels would
// be several hundred bytes apart and map to few sets of the cache.) Groups are padded with channels of zeros.
struct Rows {
  explicit Rows(const Shape& s) : shape(s) {
    // A window of one pixel never reads the pixels that a stride skips, so only the others are copied.
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
    // The last block is padded with rows whose results are discarded.
    offsets.resize(count, offsets[0]);
    weights.resize(count, -1);
  }
  int64_t ImageSize() const { return groups * places * together; }
  // Copies an image or, where words are pairs, the pairs of it and its partner.
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
  int64_t picked, step;      // stride of the pixels that are copied, and the stride that is left between their places
  int64_t height;            // number of rows that are copied
  int64_t width, places;     // of a copied image, with its margins
  int64_t together, groups;  // channels of a group, and how many groups there are
  int64_t count;             // number of rows, a multiple of kGroup
  std::vector<int64_t> offsets;  // for each row, its offset in a copied image
  std::vector<int64_t> weights;  // for each row, its row of dw, [k, k, ci][co], or -1 for padding
};

// Computes one block: adds to sums[kGroup][kColumns] the products of images, at `offsets` from each place, and dy,
// [place][kColumns], for the rows of places from `top` to `bottom` - 1. are_neighbours: whether the offsets are
// consecutive.
template <typename T, bool are_neighbours>
void AddProducts(const Rows& all, const int64_t* offsets, float* sums, const float* image, const float* dy,
                 int64_t images, int64_t top, int64_t bottom) {
  const int64_t ow = all.shape.ow, step = all.step * all.together;
  const int64_t row = step * all.width, size = all.ImageSize();
  Vector acc[kGroup][2];
#pragma GCC unroll 8
  for (int r = 0; r < kGroup; r++) {
    acc[r][0] = Load(sums + r * kColumns);
    acc[r][1] = Load(sums + r * kColumns + kLanes);
  }
  for (int64_t g = 0; g < images; g++)
    for (int64_t h = top; h < bottom; h++) {
      const float* from = image + g * size + h * row + (are_neighbours ? offsets[0] : 0);
      for (int64_t c = 0; c < ow; c++, from += step, dy += kColumns) {
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
    StoreFloats(sums + r * kColumns, acc[r][0]);
    StoreFloats(sums + r * kColumns + kLanes, acc[r][1]);
  }
}

// Adds the products of a group of images to sums, [rows first..last - 1][kColumns], for one block of columns.
template <typename T>
void AddImages(const Rows& all, int64_t first, int64_t last, float* sums, const float* image, const float* dy,
               int64_t images) {
  auto add = all.together == kGroup ? AddProducts<T, true> : AddProducts<T, false>;
  // dy and a group's part of the image are read again for each block of rows and should stay in L1, so a large image is
  // processed band by band.
  const int64_t oh = all.shape.oh, ow = all.shape.ow;
  const int64_t band = images == 1 ? std::max<int64_t>(1, kPlaces / ow) : oh;
  for (int64_t top = 0; top < oh; top += band)
    for (int64_t r = first; r < last; r += kGroup)
      add(all, &all.offsets[r], sums + (r - first) * kColumns, image, dy + top * ow * kColumns, images,
          top, std::min(oh, top + band));
}

// Copies one block of columns of dy, [place][co], or the pairs of it and its partner, to words [place][kColumns].
template <typename T>
void CopyGradient(const std::pair<const typename T::Element*, const typename T::Element*>& unit, float* to,
                  int64_t places, int64_t co, int64_t first) {
  const int64_t width = std::min<int64_t>(kColumns, co - first);
  for (int64_t place = 0; place < places; place++, to += kColumns) {
    const auto *a = unit.first + place * co + first, *b = unit.second + place * co + first;
    if (width == kColumns) {  // a constant, known at compile time
      for (int64_t j = 0; j < kColumns; j++) to[j] = T::Word(a[j], b[j]);
    } else {
      for (int64_t j = 0; j < width; j++) to[j] = T::Word(a[j], b[j]);
      std::fill(to + width, to + kColumns, 0.0f);
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
    // Columns are copied by whole vectors, rows in groups, so the operand with more channels should be the columns.
    if (s.ci > s.co) {
      is_turned = true;
      std::swap(x, dy);
      std::swap(s.ci, s.co);
    }
  }
  const Rows rows(s);
  const int64_t places = s.oh * s.ow, blocks = Blocks(s.co, kColumns), image = rows.ImageSize();
  const int64_t padded = blocks * kColumns, units = Blocks(s.n, T::kPair);  // images, or pairs of them
  const int64_t together = std::max<int64_t>(1, kPlaces / places);
  // The last of an odd number of images is paired with zeros.
  const int64_t pixels = s.h * s.w, largest = std::max(pixels * s.ci, places * s.co);
  const bool has_zeros = units * T::kPair > s.n;
  const Scratch<Element> zeros(has_zeros ? largest : 0);
  if (has_zeros) std::fill_n(zeros.data, largest, Element{0});
  // Returns a unit of x or dy, an image and its partner, normalised into `scratch` if there is a norm.
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
    const int64_t width = std::min<int64_t>(kColumns, s.co - column);
    for (int64_t r = first; r < last; r++, sums += kColumns) {
      const int64_t weight = rows.weights[r];
      if (weight < 0) continue;
      if (!is_turned) std::memcpy(dw + weight * s.co + column, sums, width * sizeof(float));
      for (int64_t j = 0; is_turned && j < width; j++) dw[(column + j) * s.ci + weight] = sums[j];
    }
  };

  // With few places and many weights, a thread owns weights and sums over all images, which are copied beforehand.
  if (units * places <= 12000 && rows.count * s.co >= 30000) {
    Scratch<float> copied(units * image), gradient(padded * units * places);
    ParallelFor(pool, units, [&](int64_t unit) {
      const Scratch<Element> scratch(scratch_size);
      rows.CopyImage<T>(read_image(unit, scratch.data), copied.data + unit * image);
      const auto from = read_gradient(unit, scratch.data);
      for (int64_t column = 0; column < s.co; column += kColumns)
        CopyGradient<T>(from, gradient.data + (column * units + unit * kColumns) * places, places, s.co, column);
    });
    constexpr int64_t kRowsOfTask = 24 * kGroup;
    const int64_t parts = Blocks(rows.count, kRowsOfTask);
    ParallelFor(pool, parts * blocks, [&](int64_t task) {
      const int64_t column = task / parts * kColumns, first = task % parts * kRowsOfTask;
      const int64_t last = std::min(rows.count, first + kRowsOfTask);
      alignas(64) float sums[kRowsOfTask * kColumns] = {};
      for (int64_t unit = 0; unit < units; unit += together)
        AddImages<T>(rows, first, last, sums, copied.data + unit * image,
                     gradient.data + (column * units + unit * kColumns) * places, std::min(together, units - unit));
      write(sums, first, last, column);
    });
    return;
  }

  // With many places, a thread owns a slice of the batch and sums over it, and the slices' sums are added in order.
  const int64_t slices = std::min(kSlices, units), size = padded * rows.count, block = places * kColumns;
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
      for (int64_t column = 0; column < s.co; column += kColumns) {
        for (int64_t g = 0; g < count; g++) CopyGradient<T>(from[g], gradient.data + g * block, places, s.co, column);
        AddImages<T>(rows, 0, rows.count, own + column * rows.count, copied.data, gradient.data, count);
      }
    }
  });
  const int64_t parts = Blocks(rows.count, kGroup * 8);
  ParallelFor(pool, blocks * parts, [&](int64_t task) {
    const int64_t column = task / parts * kColumns;
    const int64_t first = task % parts * kGroup * 8, last = std::min(rows.count, first + kGroup * 8);
    float* total = sums.data + column * rows.count + first * kColumns;
    for (int64_t slice = 1; slice < slices; slice++)
      for (int64_t i = 0; i < (last - first) * kColumns; i++) total[i] += total[slice * size + i];
    write(total, first, last, column);
  });
}

using KernelGradients = ffi::Buffer<ffi::F32, 4>;

template <typename T, ffi::DataType dtype>
ffi::Error CallKernelGradient(ffi::ThreadPool pool, Images<dtype> x, Images<dtype> dy, Vectors norm,
                              ffi::Result<KernelGradients> dw, int64_t stride, int64_t pad) {
  Shape shape = ShapeOf(x.dimensions(), dw->dimensions(), dy.dimensions(), stride, pad);
  KernelGradient<T>(pool, x.typed_data(), dy.typed_data(), dw->typed_data(), shape, NormOf(norm));
  return ffi::Error::Success();
}

}  // namespace

#define FER_JAX_HANDLERS(T, I, dtype, name)                                            \
  FER_JAX_HANDLER(fer_jax_conv_kernel_gradient_##name, (CallKernelGradient<T, dtype>), \
                  .Arg<I>().Arg<I>().Arg<Vectors>().Ret<KernelGradients>())

FER_JAX_HANDLERS(Float32, Images<ffi::F32>, ffi::F32, float32);
#ifdef __AVX512BF16__
FER_JAX_HANDLERS(BFloat16, Images<ffi::BF16>, ffi::BF16, bfloat16);
#endif
