// Loops over tensors, written once over a small set of vector primitives.
//
// The including file is one instruction set. Inside its anonymous namespace it has defined: VL (floats per vector), vf,
// vi, vload, vstore, vfma, vmax and vmin (the second operand where the first is NaN), vround (half to even), vfloat,
// vload_u8, vstore_u8,
// vstore_s8, vstore_s16, vload_part and vstore_part (the first values of a vector, the others 0), interleave4 (bytes of
// four rows of 16), and translate256 (a 16-entry table applied to 256 bytes). Nothing here may call an inline function of the standard library: such a function
// would be compiled with this file's instructions and could be linked into code that runs on any machine.

inline vf vset(float x) { return vf{} + x; }
inline vi vseti(int x) { return vi{} + x; }

// Halves upon halves: lane after lane would wait for each other.
template <int STEP>
inline vf vswap(vf x) {
  vi from;
  for (int i = 0; i < VL; ++i) from[i] = i ^ STEP;
  return __builtin_shuffle(x, from);
}

template <int STEP = VL / 2>
inline float vsum(vf x) {
  x += vswap<STEP>(x);
  if constexpr (STEP > 1) return vsum<STEP / 2>(x);
  return x[0];
}

template <int STEP = VL / 2>
inline float vtop(vf x) {
  x = vmax(x, vswap<STEP>(x));
  if constexpr (STEP > 1) return vtop<STEP / 2>(x);
  return x[0];
}

// Several vectors, step by step side by side: the steps of one function wait for each other, and a processor does not
// look far enough ahead to find those of the next vector.
template <int N>
struct Vectors {
  vf v[N];
};

#define EQ_EACH(value)                                              \
  {                                                                 \
    Vectors<N> y;                                                   \
    _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i) y.v[i] = value; \
    return y;                                                       \
  }
#define EQ_MANY template <int N> EQ_INLINE Vectors<N>
EQ_MANY operator+(Vectors<N> a, float b) EQ_EACH(a.v[i] + b)
EQ_MANY operator-(Vectors<N> a, float b) EQ_EACH(a.v[i] - b)
EQ_MANY operator*(Vectors<N> a, float b) EQ_EACH(a.v[i] * b)
EQ_MANY operator*(float a, Vectors<N> b) EQ_EACH(a * b.v[i])
EQ_MANY operator*(Vectors<N> a, Vectors<N> b) EQ_EACH(a.v[i] * b.v[i])
EQ_MANY operator/(Vectors<N> a, Vectors<N> b) EQ_EACH(a.v[i] / b.v[i])
EQ_MANY vmax(Vectors<N> a, vf b) EQ_EACH(vmax(a.v[i], b))
EQ_MANY vmin(Vectors<N> a, vf b) EQ_EACH(vmin(a.v[i], b))
EQ_MANY vfma(Vectors<N> a, vf b, vf c) EQ_EACH(vfma(a.v[i], b, c))
EQ_MANY vfma(Vectors<N> a, vf b, Vectors<N> c) EQ_EACH(vfma(a.v[i], b, c.v[i]))
EQ_MANY vfma(vf a, Vectors<N> b, vf c) EQ_EACH(vfma(a, b.v[i], c))
EQ_MANY vfma(Vectors<N> a, Vectors<N> b, vf c) EQ_EACH(vfma(a.v[i], b.v[i], c))
EQ_MANY vfma(Vectors<N> a, Vectors<N> b, Vectors<N> c) EQ_EACH(vfma(a.v[i], b.v[i], c.v[i]))

// p times 2^n, where n is what the last bits of t say as a whole number.
EQ_INLINE vf vscaled(vf p, vf t) { return (vf)((vi)p + ((vi)t << 23)); }
EQ_MANY vscaled(Vectors<N> p, Vectors<N> t) EQ_EACH(vscaled(p.v[i], t.v[i]))
#undef EQ_MANY
#undef EQ_EACH

// exp of what is not positive: 2^n times the polynomial of degree 5 in the remainder that has the least relative error
// with 1 + x at its end. Relative error below 5e-7, and 1 at 0.
template <class V>
EQ_INLINE V vexp(V x) {
  constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23: sums with it are whole numbers
  x = vmax(x, vset(-87.3f));
  const V t = vfma(x, vset(1.44269504f), vset(kWhole));
  const V r = vfma(t - kWhole, vset(-0.693147182f), x);
  V p = vfma(vset(8.321478963e-3f), r, vset(4.189066961e-2f));
  p = vfma(p, r, vset(1.666701138e-1f));
  p = vfma(p, r, vset(4.999923110e-1f));
  p = vfma(p, r, vset(1.0f));
  p = vfma(p, r, vset(1.0f));
  return vscaled(p, t);
}

// An odd function as x * P(x^2) / Q(x^2) within [-limit, limit] and constant beyond; coefficients from the highest power.
template <class V, int P, int Q>
EQ_INLINE V vodd(V x, float limit, const float (&numerator)[P], const float (&denominator)[Q]) {
  x = vmin(vmax(x, vset(-limit)), vset(limit));
  const V square = x * x;
  V p = vfma(vset(numerator[0]), square, vset(numerator[1])), q = vfma(vset(denominator[0]), square, vset(denominator[1]));
#pragma GCC unroll 8
  for (int i = 2; i < P; ++i) p = vfma(p, square, vset(numerator[i]));
#pragma GCC unroll 8
  for (int i = 2; i < Q; ++i) q = vfma(q, square, vset(denominator[i]));
  return x * p / q;
}

// Rational functions with the coefficients that the library Eigen has for binary32: absolute errors below 5e-7.
template <class V>
EQ_INLINE V vtanh(V x) {
  constexpr float kTop[] = {-2.76076847742355e-16f, 2.00018790482477e-13f, -8.60467152213735e-11f, 5.12229709037114e-08f,
                            1.48572235717979e-05f, 6.37261928875436e-04f, 4.89352455891786e-03f};
  constexpr float kBottom[] = {1.19825839466702e-06f, 1.18534705686654e-04f, 2.26843463243900e-03f, 4.89352518554385e-03f};
  return vodd(x, 7.90531110763549805f, kTop, kBottom);
}

template <class V>
EQ_INLINE V verf(V x) {
  constexpr float kTop[] = {-2.72614225801306e-10f, 2.77068142495902e-08f, -2.10102402082508e-06f, -5.69250639462346e-05f,
                            -7.34990630326855e-04f, -2.95459980854025e-03f, -1.60960333262415e-02f};
  constexpr float kBottom[] = {-1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f, -7.37332916720468e-03f,
                               -1.42647390514189e-02f};
  return vodd(x, 4.0f, kTop, kBottom);
}

template <class V>
EQ_INLINE V vsigmoid(V x) {
  return vfma(vtanh(0.5f * x), vset(0.5f), vset(0.5f));
}

template <class V>
EQ_INLINE V vgelu(V x) {
  const V half = 0.5f * x;
  return vfma(verf(x * 0.707106781f), half, half);
}

template <int KIND, class V>
EQ_INLINE V vactivate(V x) {
  if (KIND == EQ_RELU) return vmax(x, vset(0.0f));
  if (KIND == EQ_RELU6) return vmin(vmax(x, vset(0.0f)), vset(6.0f));
  if (KIND == EQ_SILU) return x * vsigmoid(x);
  if (KIND == EQ_GELU) return vgelu(x);
  if (KIND == EQ_SIGMOID) return vsigmoid(x);
  if (KIND == EQ_HARD_SIGMOID || KIND == EQ_HARD_SWISH) {
    const V gate = vmin(vmax((x + 3.0f) * (1.0f / 6.0f), vset(0.0f)), vset(1.0f));
    return KIND == EQ_HARD_SWISH ? x * gate : gate;
  }
  return x;
}

#define EQ_SWITCH_ACTIVATION(kind, call)      \
  switch (kind) {                             \
    case EQ_RELU: call(EQ_RELU);              \
    case EQ_RELU6: call(EQ_RELU6);            \
    case EQ_SILU: call(EQ_SILU);              \
    case EQ_GELU: call(EQ_GELU);              \
    case EQ_HARD_SWISH: call(EQ_HARD_SWISH);  \
    case EQ_SIGMOID: call(EQ_SIGMOID);        \
    case EQ_HARD_SIGMOID: call(EQ_HARD_SIGMOID); \
    default: call(EQ_IDENTITY);               \
  }

// --- quantisation -----------------------------------------------------------------------------------------------

inline vi vquantize(vf x, const QuantArgs& q) {
  return vround(vmin(vmax(x * q.inverse, vset(q.low)), vset(q.high)));
}

// The nearest of 0 and the powers of two from 1 down: half a mantissa is added, the mantissa is cut off.
inline vi vquantize_log2(vf x, const QuantArgs& q) {
  const vf steps = x * q.inverse * (float)(1 << (q.log2_levels - 1));
  const vf inside = vmin(vmax(steps, vset(1.0f)), vset((float)(1 << (q.log2_levels - 1))));
  const vi level = vround((vf)(((vi)inside + 0x400000) & 0x7f800000));
  return steps > vset(0.5f) ? level : vseti(0);
}

#ifndef EQ_OWN_LOOKUP
inline vi vlookup(vi code, const uint8_t* table) {
  vi found;
  for (int i = 0; i < VL; ++i) found[i] = table[code[i]];
  return found;
}
#endif

inline vi vcode(vf x, const QuantArgs& q) {
  if (q.log2_levels > 0) return vquantize_log2(x, q);
  const vi code = vquantize(x, q) + q.zero_point;
  return q.nearest ? vlookup(code, q.nearest) : code;
}

// Four vectors plus a zero point, looked up if there is a table, as bytes at places `pitch` apart: together they take
// half of the packing.
#ifndef EQ_OWN_STORE4
// Codes of four vectors, COUNT to a row.
template <int COUNT>
EQ_INLINE void vstore4_u8(uint8_t* p, ptrdiff_t pitch, const vi* x, int zero_point, const uint8_t* nearest) {
  for (int i = 0; i < 4; ++i) {
    const vi code = x[i] + zero_point;
    vstore_u8(p + i / COUNT * pitch + i % COUNT * VL, nearest ? vlookup(code, nearest) : code);
  }
}
#endif

template <class T, class Store>
inline void quantize_loop(const float* x, size_t count, const QuantArgs& q, T* out, Store store) {
  size_t i = 0;
  for (; i + VL <= count; i += VL) store(out + i, vcode(vload(x + i), q));
  if (i < count) {
    const vi tail = vcode(vload_part(x + i, (int)(count - i)), q);
    for (int j = 0; i < count; ++i, ++j) out[i] = (T)tail[j];
  }
}

void quantize_u8_simple(const float* x, size_t count, const QuantArgs& q, uint8_t* out) {
  quantize_loop(x, count, q, out, [](uint8_t* p, vi v) { vstore_u8(p, v); });
}

#ifdef EQ_OWN_QUANTIZE_U8
void quantize_u8(const float* x, size_t count, const QuantArgs& q, uint8_t* out);
#else
void quantize_u8(const float* x, size_t count, const QuantArgs& q, uint8_t* out) { quantize_u8_simple(x, count, q, out); }
#endif

void quantize_s8(const float* x, size_t count, const QuantArgs& q, int8_t* out) {
  quantize_loop(x, count, q, out, [](int8_t* p, vi v) { vstore_s8(p, v); });
}

void quantize_s16(const float* x, size_t count, const QuantArgs& q, int16_t* out) {
  quantize_loop(x, count, q, out, [](int16_t* p, vi v) { vstore_s16(p, v); });
}

void quantize_f32(const float* x, size_t count, const QuantArgs& q, float* out) {
  size_t i = 0;
  for (; i + VL <= count; i += VL) vstore(out + i, vfloat(vcode(vload(x + i), q) - q.zero_point));
  if (i < count) {
    const int rest = (int)(count - i);
    vstore_part(out + i, vfloat(vcode(vload_part(x + i, rest), q) - q.zero_point), rest);
  }
}

void dequantize_u8(const uint8_t* codes, size_t count, float scale, int32_t zero_point, float* out) {
  size_t i = 0;
  for (; i + VL <= count; i += VL) vstore(out + i, vfloat(vload_u8(codes + i) - zero_point) * scale);
  for (; i < count; ++i) out[i] = (float)(codes[i] - zero_point) * scale;
}

// --- weights ----------------------------------------------------------------------------------------------------

// Thirty-two bytes as wide integers: shifts cross bytes, masks take the strangers out again.
typedef unsigned long long vbits __attribute__((vector_size(32), may_alias, aligned(1)));

// Planes of 4, 2 and 1 bit, lowest bits first: in a block of 256 values, eight vectors v of 32 bytes.
template <int BITS>
inline void unpack_block(const uint8_t* p, uint8_t* out) {
  constexpr bool has4 = BITS >= 4, has2 = (BITS & 3) >= 2, has1 = BITS & 1;
  const vbits* nibbles = (const vbits*)p;
  const vbits* pairs = nibbles + (has4 ? 4 : 0);
  const vbits* singles = pairs + (has2 ? 2 : 0);
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    vbits code = {};
    if (has4) code |= (nibbles[v / 2] >> (4 * (v & 1))) & 0x0f0f0f0f0f0f0f0fULL;
    if (has2) code |= ((pairs[v / 4] >> (2 * (v & 3))) & 0x0303030303030303ULL) << (has4 ? 4 : 0);
    if (has1) code |= ((singles[0] >> v) & 0x0101010101010101ULL) << (BITS - 1);
    ((vbits*)out)[v] = code;
  }
}

template <int BITS>
void decode_bits(const uint8_t* packed, size_t count, const int8_t* codebook, int8_t* out) {
  for (size_t done = 0; done < count; done += 256, packed += 32 * BITS, out += 256) {
    unpack_block<BITS>(packed, (uint8_t*)out);
    if (codebook)
      translate256(codebook, out);
    else
      for (int i = 0; i < 256; ++i) out[i] = (int8_t)(out[i] - (1 << (BITS - 1)));
  }
}

void decode(const uint8_t* packed, size_t count, int bits, const int8_t* codebook, int8_t* out) {
  switch (bits) {
    case 1: return decode_bits<1>(packed, count, codebook, out);
    case 2: return decode_bits<2>(packed, count, codebook, out);
    case 3: return decode_bits<3>(packed, count, codebook, out);
    case 4: return decode_bits<4>(packed, count, codebook, out);
    case 5: return decode_bits<5>(packed, count, codebook, out);
    case 6: return decode_bits<6>(packed, count, codebook, out);
    default: return decode_bits<7>(packed, count, codebook, out);
  }
}

void widen(const int8_t* values, size_t count, void* out) {
  for (size_t i = 0; i < count; ++i) static_cast<int16_t*>(out)[i] = values[i];
}

void widen_u8(const uint8_t* x, size_t count, int16_t* out) {
  for (size_t i = 0; i < count; ++i) out[i] = x[i];
}

// --- epilogues --------------------------------------------------------------------------------------------------

template <bool INTEGER>
inline vf epilogue_value(const EpilogueArgs& e, int r, int c, vi correction) {
  const ptrdiff_t at = (ptrdiff_t)r * e.stride + c;
  if (INTEGER) return vfloat(*(const vi*)((const int32_t*)e.tile + at) - correction);
  return *(const vf*)((const float*)e.tile + at);
}

// What the results of COUNT vectors of columns, from c on, are made with.
template <int KIND, bool INTEGER, bool GAINS, int COUNT>
struct Columns {
  vf scale[COUNT], bias[COUNT], gain[COUNT];
  vi correction[COUNT];
  int first;

  EQ_INLINE Columns(const EpilogueArgs& e, int c) : first(c) {
    for (int i = 0; i < COUNT; ++i, c += VL) {
      scale[i] = e.scale ? vload(e.scale + c) : vset(1.0f);
      bias[i] = e.last ? vload(e.bias + c) : vset(0.0f);
      gain[i] = GAINS ? vload(e.gains + c) : vf{};
      correction[i] = INTEGER ? *(const vi_loose*)(e.correction + c) : vi{};
    }
  }
  // Results of N vectors from row r on, before the gain.
  template <int N>
  EQ_INLINE Vectors<N> values(const EpilogueArgs& e, int r) const {
    Vectors<N> y;
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const int i = j % COUNT;
      y.v[j] = vfma(epilogue_value<INTEGER>(e, r + j / COUNT, first + i * VL, correction[i]), scale[i], bias[i]);
    }
    return vactivate<KIND>(y);
  }
};

// Whole vectors, all COUNT of a row together: rows are far apart, and what depends on the column stays in registers.
// Arguments are copied, for a stored result might be one of them.
template <int KIND, bool INTEGER, bool GAINS, int COUNT>
inline void epilogue_plain(const EpilogueArgs e, int c) {
  const Columns<KIND, INTEGER, GAINS, COUNT> columns(e, c);
  float* out = e.out + c;
  const auto store = [&](const auto& y, int count) __attribute__((always_inline)) {  // as EQ_INLINE
    for (int j = 0; j < count; ++j)
      vstore(out + j / COUNT * e.ldo + j % COUNT * VL, GAINS ? y.v[j] * columns.gain[j % COUNT] : y.v[j]);
  };
  constexpr int rows = KIND == EQ_SILU || KIND == EQ_GELU || KIND == EQ_SIGMOID ? 4 / COUNT : 1;
  int r = 0;
  for (; rows > 1 && r + rows <= e.rows; r += rows, out += rows * e.ldo)
    store(columns.template values<rows * COUNT>(e, r), rows * COUNT);
  for (; r < e.rows; ++r, out += e.ldo) store(columns.template values<COUNT>(e, r), COUNT);
}

inline void store_codes(uint8_t* out, vf y, const QuantArgs& to, int width) {
  const vi code = vcode(y, to);
  if (width == VL) return vstore_u8(out, code);
  for (int j = 0; j < width; ++j) out[j] = (uint8_t)code[j];
}

// Likewise to codes of equal steps, looked up perhaps.
template <int KIND, bool INTEGER, bool GAINS, bool LOOKUP, int COUNT>
inline void epilogue_steps(const EpilogueArgs e, int c) {
  const QuantArgs to = *e.to;
  const Columns<KIND, INTEGER, GAINS, COUNT> columns(e, c);
  const vf low = vset(to.low), high = vset(to.high);
  vf inverse[COUNT];
  for (int i = 0; i < COUNT; ++i) inverse[i] = GAINS ? vset(to.inverse) * columns.gain[i] : vset(to.inverse);
  const uint8_t* const nearest = LOOKUP ? to.nearest : nullptr;
  uint8_t* out = e.codes + c;
  const auto code = [&](vf y, int i) __attribute__((always_inline)) {  // as EQ_INLINE
    return vround(vmin(vmax(y * inverse[i], low), high));
  };
  constexpr int rows = 4 / COUNT;
  int r = 0;
  for (; r + rows <= e.rows; r += rows, out += rows * e.ldo) {
    const Vectors<4> y = columns.template values<4>(e, r);
    vi four[4];
    for (int j = 0; j < 4; ++j) four[j] = code(y.v[j], j % COUNT);
    vstore4_u8<COUNT>(out, e.ldo, four, to.zero_point, nearest);
  }
  for (; r < e.rows; ++r, out += e.ldo) {
    const Vectors<COUNT> y = columns.template values<COUNT>(e, r);
    for (int i = 0; i < COUNT; ++i) {
      const vi x = code(y.v[i], i) + to.zero_point;
      vstore_u8(out + i * VL, nearest ? vlookup(x, nearest) : x);
    }
  }
}

template <int KIND, bool INTEGER, bool GAINS, int COUNT>
inline void epilogue_whole(const EpilogueArgs& e, int c) {
  if (!e.codes) return epilogue_plain<KIND, INTEGER, GAINS, COUNT>(e, c);
  e.to->nearest ? epilogue_steps<KIND, INTEGER, GAINS, true, COUNT>(e, c) : epilogue_steps<KIND, INTEGER, GAINS, false, COUNT>(e, c);
}

// One vector or a part of one, with all that can come.
template <int KIND, bool INTEGER, bool GAINS>
inline void epilogue_part(const EpilogueArgs& e, int c) {
  const Columns<KIND, INTEGER, GAINS, 1> columns(e, c);
  const int width = e.columns - c < VL ? e.columns - c : VL;
  const auto load = [&](const float* from) { return width == VL ? vload(from) : vload_part(from, width); };
  for (int r = 0; r < e.rows; ++r) {
    const ptrdiff_t at = r * e.ldo + c;
    vf y = vfma(epilogue_value<INTEGER>(e, r, c, columns.correction[0]), columns.scale[0], columns.bias[0]);
    if (!e.first) y += load(e.out + at);
    if (e.last) {
      y = vactivate<KIND>(y);
      if (GAINS) y *= columns.gain[0];
      if (e.residual) y += load(e.residual + at);
    }
    if (e.codes)
      store_codes(e.codes + at, y, *e.to, width);
    else if (width == VL)
      vstore(e.out + at, y);
    else
      vstore_part(e.out + at, y, width);
  }
}

template <int KIND, bool INTEGER, bool GAINS>
void epilogue_kind(const EpilogueArgs& e) {
  const bool is_whole = e.first && e.last && !e.residual && !(e.codes && e.to->log2_levels > 0);
  int c = 0;
  for (; is_whole && c + kPanel <= e.columns; c += kPanel) epilogue_whole<KIND, INTEGER, GAINS, kPanel / VL>(e, c);
  for (; is_whole && c + VL <= e.columns; c += VL) epilogue_whole<KIND, INTEGER, GAINS, 1>(e, c);
  for (; c < e.columns; c += VL) epilogue_part<KIND, INTEGER, GAINS>(e, c);
}

void epilogue_s32(const EpilogueArgs& e) {
#define EQ_CALL(kind) return e.gains ? epilogue_kind<kind, true, true>(e) : epilogue_kind<kind, true, false>(e)
  EQ_SWITCH_ACTIVATION(e.activation, EQ_CALL)
#undef EQ_CALL
}

void epilogue_f32(const EpilogueArgs& e) {
#define EQ_CALL(kind) return e.gains ? epilogue_kind<kind, false, true>(e) : epilogue_kind<kind, false, false>(e)
  EQ_SWITCH_ACTIVATION(e.activation, EQ_CALL)
#undef EQ_CALL
}

// --- depthwise --------------------------------------------------------------------------------------------------

// PIXELS outputs of one channel vector; the columns they share are loaded once.
template <int KW, int STRIDE, int PIXELS>
inline void depthwise_pixels(const DepthwiseArgs& d, ptrdiff_t pitch, int ox, int c, vf* sums) {
  constexpr int columns = (PIXELS - 1) * STRIDE + KW;
  for (int p = 0; p < PIXELS; ++p) sums[p] = vf{};
  const ptrdiff_t start = (ptrdiff_t)ox * STRIDE * pitch + c;
  for (int ky = 0; ky < d.kernel_h; ++ky) {
    const float* row = d.rows[ky] + start;
    const float* weight = d.weights + (ptrdiff_t)ky * KW * d.weight_stride + c;
    vf column[columns];
#pragma GCC unroll 16
    for (int i = 0; i < columns; ++i) column[i] = vload(row + i * pitch);
#pragma GCC unroll 8
    for (int kx = 0; kx < KW; ++kx) {
      const vf w = vload(weight + kx * d.weight_stride);
#pragma GCC unroll 8
      for (int p = 0; p < PIXELS; ++p) sums[p] = vfma(column[p * STRIDE + kx], w, sums[p]);
    }
  }
}

inline void depthwise_any(const DepthwiseArgs& d, ptrdiff_t pitch, int ox, int c, vf* sums) {
  sums[0] = vf{};
  for (int ky = 0; ky < d.kernel_h; ++ky)
    for (int kx = 0; kx < d.kernel_w; ++kx) {
      const ptrdiff_t column = (ptrdiff_t)ox * d.stride_w + (ptrdiff_t)kx * d.dilation_w;
      const vf w = vload(d.weights + (ptrdiff_t)(ky * d.kernel_w + kx) * d.weight_stride + c);
      sums[0] = vfma(vload(d.rows[ky] + column * pitch + c), w, sums[0]);
    }
}

// What turns the sums of one channel vector into results.
struct Finish {
  vf scale, bias, inverse, low, high;
  vi zero;
  const uint8_t* nearest;
  bool is_fast;  // whole vectors of codes of equal steps, looked up perhaps
};

EQ_INLINE Finish depthwise_finish(const DepthwiseArgs& d, int c) {
  const QuantArgs to = d.codes ? *d.to : QuantArgs{};
  return {vload(d.scale + c), vload(d.bias + c), vset(to.inverse), vset(to.low), vset(to.high), vseti(to.zero_point),
          to.nearest, d.codes && to.log2_levels == 0 && d.channels - c >= VL};
}

template <int KIND>
EQ_INLINE void depthwise_store(const DepthwiseArgs& d, int ox, int c, vf sum, const Finish& f) {
  const int width = d.channels - c < VL ? d.channels - c : VL;
  const ptrdiff_t at = (ptrdiff_t)ox * d.channels + c;
  vf y = vactivate<KIND>(vfma(sum, f.scale, f.bias));
  if (d.residual) y += width == VL ? vload(d.residual + at) : vload_part(d.residual + at, width);
  if (f.is_fast) {
    const vi code = vround(vmin(vmax(y * f.inverse, f.low), f.high)) + f.zero;
    vstore_u8(d.codes + at, f.nearest ? vlookup(code, f.nearest) : code);
  } else if (d.codes)
    store_codes(d.codes + at, y, *d.to, width);
  else if (width == VL)
    vstore(d.out + at, y);
  else
    vstore_part(d.out + at, y, width);
}

// Four neighbours of one channel vector.
template <int KIND>
EQ_INLINE void depthwise_store4(const DepthwiseArgs& d, int ox, int c, const vf* sums, const Finish& f) {
  if (!f.is_fast || d.residual) {
    for (int p = 0; p < 4; ++p) depthwise_store<KIND>(d, ox + p, c, sums[p], f);
    return;
  }
  vi four[4];
  for (int p = 0; p < 4; ++p)
    four[p] = vround(vmin(vmax(vactivate<KIND>(vfma(sums[p], f.scale, f.bias)) * f.inverse, f.low), f.high));
  vstore4_u8<1>(d.codes + (ptrdiff_t)ox * d.channels + c, d.channels, four, d.to->zero_point, f.nearest);
}

template <int KIND, int KW, int STRIDE>
void depthwise_fixed(const DepthwiseArgs& d) {
  constexpr int P = 4;
  const ptrdiff_t pitch = (d.channels + kPanel - 1) / kPanel * kPanel;
  for (int c = 0; c < d.channels; c += VL) {
    const Finish finish = depthwise_finish(d, c);
    int ox = 0;
    vf sums[P];
    for (; ox + P <= d.out_w; ox += P) {
      depthwise_pixels<KW, STRIDE, P>(d, pitch, ox, c, sums);
      depthwise_store4<KIND>(d, ox, c, sums, finish);
    }
    for (; ox < d.out_w; ++ox) {
      depthwise_pixels<KW, STRIDE, 1>(d, pitch, ox, c, sums);
      depthwise_store<KIND>(d, ox, c, sums[0], finish);
    }
  }
}

template <int KIND>
void depthwise_kind(const DepthwiseArgs& d) {
  if (d.dilation_w == 1 && d.kernel_w == 3 && d.stride_w == 1) return depthwise_fixed<KIND, 3, 1>(d);
  if (d.dilation_w == 1 && d.kernel_w == 3 && d.stride_w == 2) return depthwise_fixed<KIND, 3, 2>(d);
  if (d.dilation_w == 1 && d.kernel_w == 5 && d.stride_w == 1) return depthwise_fixed<KIND, 5, 1>(d);
  if (d.dilation_w == 1 && d.kernel_w == 5 && d.stride_w == 2) return depthwise_fixed<KIND, 5, 2>(d);
  const ptrdiff_t pitch = (d.channels + kPanel - 1) / kPanel * kPanel;
  for (int c = 0; c < d.channels; c += VL)
    for (int ox = 0; ox < d.out_w; ++ox) {
      vf sum;
      depthwise_any(d, pitch, ox, c, &sum);
      depthwise_store<KIND>(d, ox, c, sum, depthwise_finish(d, c));
    }
}

void depthwise(const DepthwiseArgs& d) {
#define EQ_CALL(kind) return depthwise_kind<kind>(d)
  EQ_SWITCH_ACTIVATION(d.activation, EQ_CALL)
#undef EQ_CALL
}

// --- codes ------------------------------------------------------------------------------------------------------

inline uint8_t clamp_code(int64_t value, const QuantArgs& q, const uint8_t* table) {
  value += q.zero_point;
  const int64_t low = (int64_t)q.low + q.zero_point, high = (int64_t)q.high + q.zero_point;
  value = value < low ? low : value > high ? high : value;
  return table ? table[value] : (uint8_t)value;
}

void requantize(const int32_t* acc, int rows, int channels, const int32_t* bias, const int32_t* multiplier,
                const int8_t* shift, const QuantArgs& to, const uint8_t* table, uint8_t* out) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < channels; ++c) {
      const ptrdiff_t i = (ptrdiff_t)r * channels + c;
      int64_t value = (int32_t)((uint32_t)acc[i] + (bias ? (uint32_t)bias[c] : 0u));
      const int left = shift[c] > 0 ? shift[c] : 0, right = shift[c] < 0 ? -shift[c] : 0;
      value *= (int64_t)1 << left;
      value = value > INT32_MAX ? INT32_MAX : value < INT32_MIN ? INT32_MIN : value;
      const int64_t product = value * multiplier[c];
      const int64_t nudged = product + (product >= 0 ? (1 << 30) : 1 - (1 << 30));
      int64_t high = (nudged + (nudged < 0 ? INT64_C(0x7fffffff) : 0)) >> 31;
      high = high > INT32_MAX ? INT32_MAX : high;
      const int64_t mask = ((int64_t)1 << right) - 1;
      const int64_t up = (high & mask) > (mask >> 1) + (high < 0 && right > 0 ? 1 : 0) ? 1 : 0;
      out[i] = clamp_code((high >> right) + up, to, table);
    }
}

void requantize_shift(const int32_t* acc, int rows, int channels, const int32_t* bias, const int8_t* shift,
                      const QuantArgs& to, const uint8_t* table, uint8_t* out) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < channels; ++c) {
      const ptrdiff_t i = (ptrdiff_t)r * channels + c;
      const int64_t value = (int32_t)((uint32_t)acc[i] + (bias ? (uint32_t)bias[c] : 0u));
      const int right = shift[c] > 0 ? shift[c] : 0;
      const int64_t half = right > 0 ? (int64_t)1 << (right - 1) : 0;
      out[i] = clamp_code((value + half) >> right, to, table);
    }
}

#ifndef EQ_OWN_LOOKUP_CODES
void lookup(const uint8_t* codes, size_t count, const uint8_t* table, uint8_t* out) {
  for (size_t i = 0; i < count; ++i) out[i] = table[codes[i]];
}
#else
void lookup(const uint8_t* codes, size_t count, const uint8_t* table, uint8_t* out);
#endif

void add_u8(const uint8_t* a, float scale_a, int zero_a, const uint8_t* b, float scale_b, int zero_b, size_t count,
            const QuantArgs& to, uint8_t* out) {
  alignas(64) float sums[256];
  for (size_t done = 0; done < count; done += 256) {
    const size_t block = count - done < 256 ? count - done : 256;
    for (size_t i = 0; i < block; ++i)
      sums[i] = (float)(a[done + i] - zero_a) * scale_a + (float)(b[done + i] - zero_b) * scale_b;
    quantize_u8(sums, block, to, out + done);
  }
}

// --- rounding of weights ------------------------------------------------------------------------------------------

// to[j][lane] += amounts[i][lane] * weights[i * pitch + j], one i after the other; products are rounded, as torch does.
void add_outers(const float* amounts, int amount_count, const float* weights, ptrdiff_t pitch, int count, float* to) {
  constexpr int kVectors = kLanes / VL, kTile = 4;
  int j = 0;
  for (; j + kTile <= count; j += kTile, to += kTile * kLanes) {
    vf sum[kTile * kVectors];
    for (int t = 0; t < kTile * kVectors; ++t) sum[t] = vload(to + t * VL);
    for (int i = 0; i < amount_count; ++i)
      for (int t = 0; t < kTile; ++t)
        for (int v = 0; v < kVectors; ++v)
          sum[t * kVectors + v] = sum[t * kVectors + v] + vload(amounts + i * kLanes + v * VL) * vset(weights[i * pitch + j + t]);
    for (int t = 0; t < kTile * kVectors; ++t) vstore(to + t * VL, sum[t]);
  }
  for (; j < count; ++j, to += kLanes)
    for (int i = 0; i < amount_count; ++i)
      for (int v = 0; v < kVectors; ++v)
        vstore(to + v * VL, vload(to + v * VL) + vload(amounts + i * kLanes + v * VL) * vset(weights[i * pitch + j]));
}

// The nearest points of a vector of values; `column` is that of the first of them.
EQ_INLINE vf vnearest(vf value, const GridRow& grid, int column) {
  const vf scale = vload(grid.scale + column), steps = value * (1.0f / scale);
  vf point;
  if (grid.table) {
    point = vset(grid.table[0]);
    for (int i = 1; i < grid.table_size; ++i) point = steps > vset(grid.middles[i - 1]) ? vset(grid.table[i]) : point;
  } else {
    const vf whole = vfloat(vround(vmin(vmax(steps, vset(-kLargestInteger)), vset(kLargestInteger))));
    const vf lower = grid.lowers ? vload(grid.lowers + column) : vset(grid.lower);
    const vf upper = grid.uppers ? vload(grid.uppers + column) : vset(grid.upper);
    point = vmin(vmax(whole, lower), upper);
  }
  return point * scale;
}

// The nearest points of values whose number is a multiple of kLanes.
void nearest_points(const float* values, int count, const GridRow& grid, float* points) {
  for (int i = 0; i < count; i += VL) vstore(points + i, vnearest(vload(values + i), grid, i));
}

// One pass over a row, whose arrays are padded to whole vectors. A few columns are looked at together; the first one that
// moves changes the slope of those behind it, which are looked at again.
bool revise_row(float* values, float* slope, const float* hessian, const float* per_step, int columns, const GridRow& grid) {
  bool is_changed = false;
  for (int base = 0; base < columns; base += VL)
    for (int done = 0; done < VL;) {
      const vf old = vload(values + base);
      const vf point = vnearest(old - vload(slope + base) * vload(per_step + base), grid, base);
      int moved = done;
      while (moved < VL && !(point[moved] != old[moved])) ++moved;
      done = moved + 1;
      if (moved == VL || base + moved >= columns) break;
      is_changed = true;
      values[base + moved] = point[moved];
      const vf change = vset(point[moved] - old[moved]);
      const float* row = hessian + (ptrdiff_t)(base + moved) * columns;
      int c = 0;
      for (; c + VL <= columns; c += VL) vstore(slope + c, vload(slope + c) + change * vload(row + c));
      if (c < columns) vstore_part(slope + c, vload_part(slope + c, columns - c) + change * vload_part(row + c, columns - c), columns - c);
    }
  return is_changed;
}

// --- floating point ---------------------------------------------------------------------------------------------

template <int KIND>
void activate_kind(const float* x, size_t count, float* out) {
  size_t i = 0;
  for (; i + VL <= count; i += VL) vstore(out + i, vactivate<KIND>(vload(x + i)));
  if (i < count) vstore_part(out + i, vactivate<KIND>(vload_part(x + i, (int)(count - i))), (int)(count - i));
}

void activate(int kind, const float* x, size_t count, float* out) {
#define EQ_CALL(kind) return activate_kind<kind>(x, count, out)
  EQ_SWITCH_ACTIVATION(kind, EQ_CALL)
#undef EQ_CALL
}

void add(const float* a, const float* b, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

void mul(const float* a, const float* b, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = a[i] * b[i];
}

void scale_rows(const float* x, size_t rows, int channels, const float* scale, const float* shift, float* out) {
  for (size_t r = 0; r < rows; ++r, x += channels, out += channels)
    if (shift)
      for (int c = 0; c < channels; ++c) out[c] = x[c] * scale[c] + shift[c];
    else
      for (int c = 0; c < channels; ++c) out[c] = x[c] * scale[c];
}

// The greatest value of a row, in several vectors: one alone would wait for itself.
float row_top(const float* x, int columns) {
  constexpr int kChains = 4;
  vf tops[kChains];
  for (int c = 0; c < kChains; ++c) tops[c] = vset(x[0]);
  int i = 0;
  for (; i + VL * kChains <= columns; i += VL * kChains)
    for (int c = 0; c < kChains; ++c) tops[c] = vmax(tops[c], vload(x + i + VL * c));
  for (; i + VL <= columns; i += VL) tops[0] = vmax(tops[0], vload(x + i));
  float top = vtop(vmax(vmax(tops[0], tops[1]), vmax(tops[2], tops[3])));
  for (; i < columns; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// Exponentials of a row less its greatest value, so that the greatest is 1; returns the inverse of their sum.
float exponentials_row(const float* x, int columns, float* out) {
  const float top = row_top(x, columns);
  constexpr int kTogether = 4;
  vf sums = vf{};
  int i = 0;
  for (; i + VL * kTogether <= columns; i += VL * kTogether) {
    Vectors<kTogether> e;
    for (int j = 0; j < kTogether; ++j) e.v[j] = vload(x + i + j * VL) - top;
    e = vexp(e);
    for (int j = 0; j < kTogether; ++j) {
      vstore(out + i + j * VL, e.v[j]);
      sums += e.v[j];
    }
  }
  for (; i + VL <= columns; i += VL) {
    const vf e = vexp(vload(x + i) - top);
    vstore(out + i, e);
    sums += e;
  }
  float sum = vsum(sums);
  if (i < columns) {
    vstore_part(out + i, vexp(vload_part(x + i, columns - i) - top), columns - i);
    for (; i < columns; ++i) sum += out[i];
  }
  return 1.0f / sum;
}

void exponentials(const float* x, size_t rows, int columns, float* out, float* inverse_sums) {
  for (size_t r = 0; r < rows; ++r) inverse_sums[r] = exponentials_row(x + r * columns, columns, out + r * columns);
}

void softmax(const float* x, size_t rows, int columns, float* out) {
  for (size_t r = 0; r < rows; ++r, x += columns, out += columns) {
    const float inverse = exponentials_row(x, columns, out);
    for (int i = 0; i < columns; ++i) out[i] *= inverse;
  }
}

float total(const float* x, int count) {
  vf sums = vf{};
  int i = 0;
  for (; i + VL <= count; i += VL) sums += vload(x + i);
  float sum = vsum(sums);
  for (; i < count; ++i) sum += x[i];
  return sum;
}

float total_square(const float* x, int count, float mean) {
  vf sums = vf{};
  int i = 0;
  for (; i + VL <= count; i += VL) {
    const vf d = vload(x + i) - mean;
    sums = vfma(d, d, sums);
  }
  float sum = vsum(sums);
  for (; i < count; ++i) sum += (x[i] - mean) * (x[i] - mean);
  return sum;
}

void normalize(const float* x, int columns, float mean, float inverse, const float* weight, const float* bias, float* out) {
  for (int i = 0; i < columns; ++i) out[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
}

void layer_norm(const float* x, size_t rows, int columns, const float* weight, const float* bias, float epsilon,
                float* out) {
  for (size_t r = 0; r < rows; ++r, x += columns, out += columns) {
    const float mean = total(x, columns) / (float)columns;
    const float variance = total_square(x, columns, mean) / (float)columns;
    normalize(x, columns, mean, 1.0f / __builtin_sqrtf(variance + epsilon), weight, bias, out);
  }
}

// All rows have one mean and one variance. Sums of a row are binary32, those over rows binary64.
void group_norm(const float* x, size_t rows, int columns, int groups, const float* weight, const float* bias,
                float epsilon, float* out) {
  const int width = columns / groups;
  const double count = (double)rows * width;
  for (int first = 0; first < columns; first += width) {
    double sum = 0.0, squares = 0.0;
    for (size_t r = 0; r < rows; ++r) sum += total(x + r * columns + first, width);
    const float mean = (float)(sum / count);
    for (size_t r = 0; r < rows; ++r) squares += total_square(x + r * columns + first, width, mean);
    const float inverse = 1.0f / __builtin_sqrtf((float)(squares / count) + epsilon);
    for (size_t r = 0; r < rows; ++r) {
      const size_t at = r * columns + first;
      normalize(x + at, width, mean, inverse, weight + first, bias + first, out + at);
    }
  }
}

void mean_rows(const float* x, int rows, int channels, float* out) {
  for (int c = 0; c < channels; ++c) out[c] = 0.0f;
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < channels; ++c) out[c] += x[(ptrdiff_t)r * channels + c];
  for (int c = 0; c < channels; ++c) out[c] *= 1.0f / (float)rows;
}

// --- panels of a second activation ------------------------------------------------------------------------------

// codes (columns, k) with k contiguous to [step][kPanel][4]; rows are readable and zero to a multiple of 4.
void pack_rows4(const int8_t* codes, ptrdiff_t row, int columns, int steps, int8_t* panel) {
  for (int j = 0; j < kPanel; ++j) {
    int8_t* out = panel + 4 * j;
    if (j < columns)
      for (int s = 0; s < steps; ++s, out += 4 * kPanel) __builtin_memcpy(out, codes + j * row + 4 * s, 4);
    else
      for (int s = 0; s < steps; ++s, out += 4 * kPanel) __builtin_memset(out, 0, 4);
  }
}

// codes (k, columns) with columns contiguous; 16 columns are readable in each row, and rows to a multiple of 4.
void pack_columns4(const int8_t* codes, ptrdiff_t row, int steps, int8_t* panel) {
  for (int s = 0; s < steps; ++s, codes += 4 * row, panel += 4 * kPanel)
    interleave4(codes, codes + row, codes + 2 * row, codes + 3 * row, panel);
}

// The same for steps of two, widened to 16 bits.
void pack_rows2(const int8_t* codes, ptrdiff_t row, int columns, int steps, int16_t* panel) {
  for (int j = 0; j < kPanel; ++j)
    for (int s = 0; s < steps; ++s)
      for (int i = 0; i < 2; ++i) panel[(s * kPanel + j) * 2 + i] = j < columns ? codes[j * row + 2 * s + i] : (int16_t)0;
}

void pack_columns2(const int8_t* codes, ptrdiff_t row, int steps, int16_t* panel) {
  for (int s = 0; s < steps; ++s, codes += 2 * row, panel += 2 * kPanel)
    for (int j = 0; j < kPanel; ++j) {
      panel[2 * j] = codes[j];
      panel[2 * j + 1] = codes[row + j];
    }
}

Isa base_isa() {
  Isa isa{};
  isa.quantize_u8 = quantize_u8;
  isa.quantize_s8 = quantize_s8;
  isa.quantize_s16 = quantize_s16;
  isa.quantize_f32 = quantize_f32;
  isa.dequantize_u8 = dequantize_u8;
  isa.decode = decode;
  isa.widen_u8 = widen_u8;
  isa.epilogue_s32 = epilogue_s32;
  isa.epilogue_f32 = epilogue_f32;
  isa.depthwise = depthwise;
  isa.requantize = requantize;
  isa.requantize_shift = requantize_shift;
  isa.lookup = lookup;
  isa.add_u8 = add_u8;
  isa.add_outers = add_outers;
  isa.nearest_points = nearest_points;
  isa.revise_row = revise_row;
  isa.activate = activate;
  isa.add = add;
  isa.mul = mul;
  isa.scale_rows = scale_rows;
  isa.softmax = softmax;
  isa.exponentials = exponentials;
  isa.layer_norm = layer_norm;
  isa.group_norm = group_norm;
  isa.mean_rows = mean_rows;
  isa.pack_rows4 = pack_rows4;
  isa.pack_columns4 = pack_columns4;
  isa.pack_rows2 = pack_rows2;
  isa.pack_columns2 = pack_columns2;
  return isa;
}
