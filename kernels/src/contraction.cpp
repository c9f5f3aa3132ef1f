#include "contraction.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "threads.h"

namespace eq {

Bytes::Bytes(size_t size) : size_(size) {
  const size_t whole = round_up(size + 256, (size_t)64);
  data_ = std::aligned_alloc(64, whole);
  if (!data_) throw std::bad_alloc();
  std::memset(data_, 0, whole);
}

Bytes::Bytes(Bytes&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Bytes& Bytes::operator=(Bytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

QuantArgs quant_args(const eq_quantizer& q) {
  return {1.0f / q.scale,  (float)(q.q_min - q.zero_point), (float)(q.q_max - q.zero_point), q.zero_point,
          q.log2_levels, q.level_count > 0 ? q.nearest : nullptr};
}

int check_levels(const eq_quantizer& q, const char* who) {
  if (q.level_count == 0) return 0;
  const bool is_inside = q.q_min == 0 && q.q_max <= 255 && q.zero_point >= 0 && q.zero_point <= q.q_max;
  if (!is_inside || q.nearest[q.zero_point] != q.zero_point || *std::max_element(q.nearest, q.nearest + q.q_max + 1) > q.q_max)
    return fail("%s: expected levels among the codes from 0 to at most 255, the zero point %d one of them", who, q.zero_point);
  return 0;
}

int check_result(const eq_code_tensors& codes, const char* who) {
  if (!codes.to || !(codes.to->scale > 0.0f) || codes.to->q_min < 0 || codes.to->q_max > 255)
    return fail("%s: codes of the result need a quantizer within [0, 255]", who);
  return check_levels(*codes.to, who);
}

float unit_of(const eq_quantizer& q) {
  return q.log2_levels > 0 ? std::ldexp(q.scale, 1 - q.log2_levels) : q.scale;
}

// The cheapest tile by a small model: multiplications, loads and latency of one step, and a fixed cost per tile. Heights
// near the greatest are tried, for what remains of the rows takes lower tiles; panels are spread evenly.
TileShape choose_tile(const Format& format, int m, int panels, int steps) {
  constexpr int kHeights = 3;
  const auto tile_cost = [&](int rows, int np) {
    const float step = std::max({rows * np * format.cycles, (rows + np) * format.load_cycles, format.latency});
    return rows ? steps * step + 20.0f + 2.0f * rows * np : 0.0f;
  };
  TileShape best{1, 1};
  float best_cost = INFINITY;
  for (int np = 1; np <= std::min(format.max_panels, panels); ++np) {
    const int most = std::min(format.max_rows[np], m), groups = (panels + np - 1) / np;
    for (int rows = most; rows > std::max(most - kHeights, 0); --rows) {
      const float cost = groups * ((float)(m / rows) * tile_cost(rows, np) + tile_cost(m % rows, np));
      if (cost >= best_cost) continue;
      best_cost = cost;
      best = {rows, (panels + groups - 1) / groups};
    }
  }
  return best;
}

const Format* byte_format(const Isa& isa, int k) {
  return isa.u8_short && round_up(k, isa.u8->align) > 2 * k ? isa.u8_short : isa.u8;
}

const Format* full_format(const Isa& isa, int k) {
  return isa.u8_full && round_up(k, isa.u8_full->align) < 2 * k ? isa.u8_full : isa.s16;
}

namespace {

constexpr int kChunkBytes = 48 * 1024;
constexpr int kLeastTiles = 16;
// Decoding costs as much as several rows of a product, and a small hybrid has few rows. A weight of at most this size
// is decoded when it is made; a larger one is read from memory, which packed values are faster to come from.
constexpr size_t kReadyBytes = 8 << 20;
constexpr int kStretchBytes = 20 * 1024;  // of weights: most of the first cache, beside operands and sums
constexpr int kLeastStretch = 64;          // k values
constexpr int kHighTile = 8;               // rows
constexpr int kTileValues = kMaxRows * kMaxPanels * kPanel + kBatchBytes / 4;

int check_spec(const eq_contraction_spec& s) {
  if (s.out_channels < 1 || s.in_channels < 1 || s.kernel_h < 1 || s.kernel_w < 1 || s.stride_h < 1 ||
      s.stride_w < 1 || s.pad_h < 0 || s.pad_w < 0 || s.dilation_h < 1 || s.dilation_w < 1 || s.groups < 1)
    return fail("contraction: sizes, strides, dilations and groups must be positive");
  if (s.in_channels % s.groups || s.out_channels % s.groups)
    return fail("contraction: groups must divide the channels, but %d does not divide %d and %d", s.groups,
                s.in_channels, s.out_channels);
  if (s.group_size < 0 || (s.group_size && s.in_channels / s.groups % s.group_size))
    return fail("contraction: group_size must divide the input channels, but %d does not divide %d", s.group_size,
                s.in_channels / s.groups);
  if (s.operand < EQ_OPERAND_F32 || s.operand > EQ_OPERAND_CODES_F32)
    return fail("contraction: unknown operand %d", s.operand);
  if (s.operand != EQ_OPERAND_F32 && (s.operand_max < 1 || (s.operand == EQ_OPERAND_U8 && s.operand_max > 255)))
    return fail("contraction: operand_max must lie in [1, 255] for u8, but got %d", s.operand_max);
  if ((s.operand == EQ_OPERAND_U8 || s.operand == EQ_OPERAND_S16) && (s.weight_bits < 1 || s.weight_bits > 8))
    return fail("contraction: weight_bits must lie in [1, 8], but got %d", s.weight_bits);
  return 0;
}

// Where the values of a weight go in a panel.
struct WeightOrder {
  const eq_contraction& c;
  // Offset of value i of segment s of scale group g in a weight (kernel_h, kernel_w, channels).
  ptrdiff_t source(int g, int s, int i) const {
    const int cg = c.spec.in_channels / c.spec.groups;
    return (ptrdiff_t)s * (c.whole_rows ? c.segment_k : cg) + (ptrdiff_t)g * c.segment_k + i;
  }
  size_t target(int g, int s, int i, int column) const {
    const int step = c.format->step;
    const size_t at = ((size_t)g * c.segments + s) * c.steps + i / step;
    return (at * kPanel + column) * step + i % step;
  }
};

template <class T>
void fill_panel(const eq_contraction& c, const T* weights, int group, int panel, T* out) {
  const WeightOrder order{c};
  const ptrdiff_t k = (ptrdiff_t)c.spec.kernel_h * c.spec.kernel_w * (c.spec.in_channels / c.spec.groups);
  for (int j = 0; j < kPanel && panel * kPanel + j < c.columns; ++j) {
    const T* row = weights + ((ptrdiff_t)group * c.columns + panel * kPanel + j) * k;
    for (int g = 0; g < c.scale_groups; ++g)
      for (int s = 0; s < c.segments; ++s)
        for (int i = 0; i < c.segment_k; ++i) out[order.target(g, s, i, j)] = row[order.source(g, s, i)];
  }
}

int index_of(const eq_contraction_spec& s, int8_t code) {
  if (!s.has_codebook) {
    const int index = code + (1 << (s.weight_bits - 1));
    return index >> s.weight_bits ? -1 : index;
  }
  for (int i = 0; i < 1 << s.weight_bits; ++i)
    if (s.codebook[i] == code) return i;
  return -1;
}

int store_panel(eq_contraction& c, const int8_t* values, uint8_t* stored, std::vector<uint8_t>& indices) {
  if (c.packed_bits == 8) {
    std::memcpy(stored, values, c.panel_values);
    return 0;
  }
  // Padding must decode to zero where the format sums it, so it takes the index of zero; a binary codebook has none,
  // and its padding meets activations that do not exist: see decode_panel.
  const int zero = index_of(c.spec, 0) < 0 ? 0 : index_of(c.spec, 0);
  std::fill(indices.begin(), indices.end(), (uint8_t)zero);
  for (size_t i = 0; i < c.panel_values; ++i) {
    const int index = index_of(c.spec, values[i]);
    indices[i] = (uint8_t)(index < 0 ? zero : index);
  }
  return eq_pack_bits(indices.data(), indices.size(), c.packed_bits, stored);
}

int check_codes(const eq_contraction_spec& s, const int8_t* codes, size_t count) {
  for (size_t i = 0; i < count; ++i)
    if (index_of(s, codes[i]) < 0)
      return fail("weights: value %d at %zu is not among those of %d bits%s", codes[i], i, s.weight_bits,
                  s.has_codebook ? " in the codebook" : "");
  return 0;
}

// The greatest magnitude of this sign, at most `room`, that the weights can store; -1 if there is none.
int largest_within(const eq_contraction_spec& s, int sign, int room) {
  if (!s.has_codebook) return room;
  int best = -1;
  for (int i = 0; i < 1 << s.weight_bits; ++i)
    if (sign * s.codebook[i] >= 0 && sign * s.codebook[i] <= room) best = std::max(best, sign * s.codebook[i]);
  return best;
}

// The products of `depth` steps are added in 16 bits. The lane of a column adds the products of two weights per step.
// The sum may wrap on its way but not in the end: with P and N the sums of its positive and its negative weights and
// activations in [0, A] it lies in [-A * N, A * P], so it must fit there, or in a range of 65536 values elsewhere if it
// begins at `start`. The two products of one step saturate and must fit by themselves. What a weight has beyond that is
// taken out of the panel and becomes a correction, which is added apart. False: no stored value is small enough.
struct Lane {
  int limit, room;  // for one sign within a step; for both within the depth
  int sums[2] = {0, 0};
};

bool plan_step(const eq_contraction& c, int8_t* values, Lane& lane, bool moves, const Correction& place, PanelPlan& plan) {
  int step[2] = {0, 0};
  for (int i = 0; i < 2; ++i) {
    int8_t& value = values[i];
    const int side = value < 0, sign = side ? -1 : 1, magnitude = sign * value;
    const int rest = moves ? lane.room - lane.sums[0] - lane.sums[1] : lane.limit - lane.sums[side];
    const int room = std::min(rest, lane.limit - step[side]);
    if (magnitude > room) {
      const int kept = largest_within(c.spec, sign, room);
      if (kept < 0) return false;
      plan.corrections.push_back({place.segment, place.index + i, place.column, value - sign * kept});
      value = (int8_t)(sign * kept);
    }
    step[side] += sign * value;
    lane.sums[side] += sign * value;
  }
  return true;
}

// A start for sums in [-top * negative, top * positive], as near to zero as it can be.
int16_t lane_start(const Lane& lane, int top) {
  const int least = -32768 + top * lane.sums[1], most = 32767 - top * lane.sums[0];
  return (int16_t)(least > 0 ? least : std::min(most, 0));
}

bool plan_panel(const eq_contraction& c, int depth, bool moves, const std::vector<int8_t>& original, PanelPlan& plan) {
  const int top = c.spec.operand_max;
  plan.values = original;
  for (int run = 0; run < c.scale_groups * c.segments; ++run) {
    for (int first = 0; first < c.steps; first += depth)
      for (int at = 0; at < kPanel * 2; ++at) {
        Lane lane{32767 / top, 65535 / top};
        for (int s = first; s < std::min(first + depth, c.steps); ++s) {
          int8_t* values = plan.values.data() + ((size_t)run * c.steps + s) * kPanel * 4 + at * 2;
          if (!plan_step(c, values, lane, moves, {run % c.segments, s * 4 + at % 2 * 2, at / 2, 0}, plan)) return false;
        }
        if (moves) plan.starts.push_back(lane_start(lane, top));
      }
    if ((run + 1) % c.segments == 0) plan.group_ends.push_back((int)plan.corrections.size());
  }
  return true;
}

// Cycles of one row and one step of a panel, roughly: three vector instructions per cycle, two multiplications.
float step_cycles(int depth, bool moves) {
  const float widened = 1.0f / depth;
  return std::max(2.0f * (2.0f + widened) / 3.0f, 1.0f + widened) + (moves ? 0.25f * widened : 0.0f);
}

float plans_cost(const eq_contraction& c, int depth, bool moves, const std::vector<PanelPlan>& plans) {
  constexpr float kCorrectionCycles = 2.5f;
  const float steps = (float)plans.size() * c.scale_groups * c.segments * c.steps;
  float cost = steps * step_cycles(depth, moves);
  for (const PanelPlan& plan : plans) cost += kCorrectionCycles * plan.corrections.size();
  return cost;
}

std::vector<PanelPlan> plan_panels(const eq_contraction& c, int depth, bool moves, const std::vector<std::vector<int8_t>>& values) {
  std::vector<PanelPlan> plans(values.size());
  for (size_t i = 0; i < values.size(); ++i)
    if (!plan_panel(c, depth, moves, values[i], plans[i])) return {};
  return plans;
}

// All panels have one depth: neighbours share a tile. Sums begin elsewhere than at zero where that pays.
float choose_plans(eq_contraction& c, const std::vector<std::vector<int8_t>>& values) {
  float best = INFINITY;
  for (int depth : {1, 2, 4, 8, 16, 32, 64, 128})
    for (bool moves : {false, true}) {
      if (moves && depth < 4) continue;
      std::vector<PanelPlan> plans = plan_panels(c, depth, moves, values);
      const float cost = plans.empty() ? INFINITY : plans_cost(c, depth, moves, plans);
      if (cost >= best) continue;
      best = cost;
      c.depth = depth;
      c.plans = std::move(plans);
    }
  return best;
}

void lay_out(eq_contraction& c) {
  const eq_contraction_spec& s = c.spec;
  const int cg = s.in_channels / s.groups;
  c.columns = s.out_channels / s.groups;
  c.columns_padded = round_up(c.columns, kPanel);
  c.panels = c.columns_padded / kPanel;
  c.whole_rows = s.groups == 1 && s.dilation_w == 1 && s.group_size == 0;
  c.scale_groups = s.group_size ? cg / s.group_size : 1;
  c.segments = c.whole_rows ? s.kernel_h : s.kernel_h * s.kernel_w;
  c.segment_k = c.whole_rows ? s.kernel_w * cg : cg / c.scale_groups;
}

void size_panels(eq_contraction& c) {
  c.steps = round_up(c.segment_k, c.format->align) / c.format->step;
  c.panel_values = (size_t)c.scale_groups * c.segments * c.steps * kPanel * c.format->step;
}

void pack_float(eq_contraction& c, const float* weights) {
  c.format = c.isa->f32;
  c.packed_bits = 32;
  size_panels(c);
  c.panel_bytes = c.panel_values * sizeof(float);
  c.stored = Bytes(c.panel_bytes * c.panels * c.spec.groups);
  for (int g = 0; g < c.spec.groups; ++g)
    for (int p = 0; p < c.panels; ++p)
      fill_panel(c, weights, g, p, c.stored.as<float>() + ((size_t)g * c.panels + p) * c.panel_values);
}

// Bits that are stored: padding needs a zero, which a codebook without zero has not, so that one is stored wider.
int choose_bits(const eq_contraction& c) {
  const bool padded = c.segment_k % c.format->align || c.columns % kPanel;
  return c.spec.weight_bits < 8 && padded && index_of(c.spec, 0) < 0 ? 0 : c.spec.weight_bits;
}

// A codebook of one bit has no zero. Where padding exists the pad values of a column would be multiplied with real
// neighbours of the row, so the weights take a second bit and a codebook with a zero.
void widen_codebook(eq_contraction& c) {
  eq_contraction_spec& s = c.spec;
  const int used = 1 << s.weight_bits;
  if (used < 16) {
    s.codebook[used] = 0;
    for (int i = used + 1; i < 16; ++i) s.codebook[i] = 0;
    s.weight_bits += 1;
  } else {
    s.has_codebook = 0;
    s.weight_bits = 8;
  }
}

void choose_integer_format(eq_contraction& c, const int8_t* codes) {
  c.format = c.spec.operand == EQ_OPERAND_S16 ? c.isa->s16 : byte_format(*c.isa, c.segment_k);
  size_panels(c);
  if (c.spec.operand == EQ_OPERAND_S16 || !c.isa->u8_full) return;
  std::vector<std::vector<int8_t>> values;
  for (int g = 0; g < c.spec.groups; ++g)
    for (int p = 0; p < c.panels; ++p) {
      values.emplace_back(c.panel_values);
      fill_panel(c, codes, g, p, values.back().data());
    }
  const float cost = choose_plans(c, values);
  // For all codes of 8 bits a vector takes four instructions: 2.2 cycles where four come at a time, 2.7 where three do.
  const float full = (float)c.spec.groups * c.panels * c.scale_groups * c.segments * c.steps * 2.3f;
  if (cost < full) return;
  c.plans.clear();
  c.depth = 0;
  c.format = full_format(*c.isa, c.segment_k);
  size_panels(c);
}

void add_column_sums(eq_contraction& c, const int8_t* codes) {
  c.sums = Bytes(sizeof(int32_t) * c.spec.groups * c.scale_groups * c.columns_padded);
  const WeightOrder order{c};
  const ptrdiff_t k = (ptrdiff_t)c.spec.kernel_h * c.spec.kernel_w * (c.spec.in_channels / c.spec.groups);
  for (int g = 0; g < c.spec.groups; ++g)
    for (int q = 0; q < c.scale_groups; ++q)
      for (int j = 0; j < c.columns; ++j) {
        const int8_t* row = codes + ((ptrdiff_t)g * c.columns + j) * k;
        int32_t sum = 0;
        for (int s = 0; s < c.segments; ++s)
          for (int i = 0; i < c.segment_k; ++i) sum += row[order.source(q, s, i)];
        c.sums.as<int32_t>()[((size_t)g * c.scale_groups + q) * c.columns_padded + j] = sum;
      }
}

void store_starts(eq_contraction& c) {
  if (c.plans.empty() || c.plans[0].starts.empty()) return;
  const size_t count = c.panel_starts();
  c.starts = Bytes(c.plans.size() * count * sizeof(int16_t));
  for (size_t at = 0; at < c.plans.size(); ++at) {
    std::vector<int16_t>& starts = c.plans[at].starts;
    std::copy(starts.begin(), starts.end(), c.starts.as<int16_t>() + at * count);
    starts = {};
  }
}

int pack_integer(eq_contraction& c, const int8_t* codes) {
  const size_t count =
      (size_t)c.spec.out_channels * c.spec.kernel_h * c.spec.kernel_w * (c.spec.in_channels / c.spec.groups);
  if (check_codes(c.spec, codes, count)) return -1;
  choose_integer_format(c, codes);
  while (choose_bits(c) == 0) widen_codebook(c);
  c.packed_bits = c.spec.weight_bits;
  c.panel_bytes = c.packed_bits == 8 ? round_up(c.panel_values, (size_t)64) : eq_packed_bytes(c.panel_values, c.packed_bits);
  c.stored = Bytes(c.panel_bytes * c.panels * c.spec.groups);
  std::vector<int8_t> values(c.panel_values);
  std::vector<uint8_t> indices(round_up(c.panel_values, (size_t)256));
  for (int g = 0; g < c.spec.groups; ++g)
    for (int p = 0; p < c.panels; ++p) {
      values.assign(c.panel_values, 0);
      fill_panel(c, codes, g, p, values.data());
      if (!c.plans.empty()) values = std::move(c.plans[(size_t)g * c.panels + p].values);
      if (store_panel(c, values.data(), c.stored.as<uint8_t>() + ((size_t)g * c.panels + p) * c.panel_bytes, indices))
        return -1;
    }
  add_column_sums(c, codes);
  store_starts(c);
  return 0;
}

void copy_scales(eq_contraction& c, const float* scales, const float* bias) {
  c.scales = Bytes(sizeof(float) * c.spec.groups * c.scale_groups * c.columns_padded);
  c.bias = Bytes(sizeof(float) * c.spec.groups * c.columns_padded);
  for (int g = 0; g < c.spec.groups; ++g)
    for (int j = 0; j < c.columns; ++j) {
      const int channel = g * c.columns + j;
      for (int q = 0; q < c.scale_groups; ++q)
        c.scales.as<float>()[((size_t)g * c.scale_groups + q) * c.columns_padded + j] =
            scales ? scales[(size_t)channel * c.scale_groups + q] : 1.0f;
      c.bias.as<float>()[(size_t)g * c.columns_padded + j] = bias ? bias[channel] : 0.0f;
    }
}

// --- running ----------------------------------------------------------------------------------------------------

// One contraction of one group over all rows.
struct Job {
  const eq_contraction& c;
  int group;
  int m;
  Rows rows;                  // of operands in the type of the format
  const ptrdiff_t* segments;  // [scale group][segment]
  TileShape tile;
  const int32_t* correction;  // [scale group][columns_padded]
  const float* scale;         // likewise
  int activation;
  const float* residual;
  float* out;
  int32_t* out_s32;           // instead of out
  uint8_t* out_codes = nullptr;  // instead of out, codes of `to`
  QuantArgs to{};
};

bool needs_decoding(const eq_contraction& c) { return !c.is_float() && (c.packed_bits != 8 || c.format->expand); }

const void* decode_panels(const eq_contraction& c, int group, int first, int count, void* into) {
  const uint8_t* stored = c.stored.as<uint8_t>() + ((size_t)group * c.panels + first) * c.panel_bytes;
  if (!needs_decoding(c)) return stored;
  const size_t stride = round_up(c.panel_values, (size_t)256) * c.format->weight_bytes;
  for (int p = 0; p < count; ++p, stored += c.panel_bytes) {
    char* out = static_cast<char*>(into) + p * stride;
    const int8_t* codebook = c.spec.has_codebook ? c.spec.codebook : nullptr;
    if (!c.format->expand) {
      c.isa->decode(stored, c.panel_values, c.packed_bits, codebook, reinterpret_cast<int8_t*>(out));
    } else if (c.packed_bits == 8) {
      c.format->expand(reinterpret_cast<const int8_t*>(stored), c.panel_values, out);
    } else {
      int8_t* codes = static_cast<int8_t*>(scratch(Slot::kCodes, round_up(c.panel_values, (size_t)256)));
      c.isa->decode(stored, c.panel_values, c.packed_bits, codebook, codes);
      c.format->expand(codes, c.panel_values, out);
    }
  }
  return into;
}

size_t decoded_stride(const eq_contraction& c) {
  if (!needs_decoding(c)) return c.panel_bytes;
  return round_up(c.panel_values, (size_t)256) * c.format->weight_bytes;
}

// All panels of a group, if they were decoded when the weight was made or are stored as they are; else null.
const void* ready_panels(const eq_contraction& c, int group) {
  if (!needs_decoding(c)) return c.stored.as<char>() + (size_t)group * c.panels * c.panel_bytes;
  return c.ready.size() ? c.ready.as<char>() + (size_t)group * c.panels * decoded_stride(c) : nullptr;
}

void make_ready(eq_contraction& c) {
  const size_t group_bytes = decoded_stride(c) * c.panels;
  if (!needs_decoding(c) || group_bytes * c.spec.groups > kReadyBytes) return;
  c.ready = Bytes(group_bytes * c.spec.groups);
  for (int g = 0; g < c.spec.groups; ++g) decode_panels(c, g, 0, c.panels, c.ready.as<char>() + g * group_bytes);
}

void store_s32(const Job& job, const int32_t* tile, int stride, int row, int rows, int column, int columns) {
  const eq_contraction& c = job.c;
  const int32_t* zeros = c.zero_sums.size() ? c.zero_sums.as<int32_t>() + (size_t)job.group * c.columns_padded + column : nullptr;
  for (int r = 0; r < rows; ++r, tile += stride) {
    int32_t* out = job.out_s32 + (ptrdiff_t)(row + r) * c.spec.out_channels + job.group * c.columns + column;
    for (int j = 0; j < columns; ++j) out[j] = tile[j] - (zeros ? zeros[j] : 0);
  }
}

void finish_tile(const Job& job, const void* tile, int panels, int row, int rows, int first_panel, int q) {
  const eq_contraction& c = job.c;
  const int column = first_panel * kPanel;
  const int columns = std::min(panels * kPanel, c.columns - column);
  if (job.out_s32) return store_s32(job, static_cast<const int32_t*>(tile), panels * kPanel, row, rows, column, columns);
  const size_t at = (size_t)q * c.columns_padded + column;
  const ptrdiff_t ldo = c.spec.out_channels;
  const ptrdiff_t place = (ptrdiff_t)row * ldo + job.group * c.columns + column;
  EpilogueArgs e{tile, panels * kPanel, rows, columns, job.correction ? job.correction + at : nullptr, job.scale + at,
                 c.bias.as<float>() + (size_t)job.group * c.columns_padded + column, job.activation, q == 0,
                 q == c.scale_groups - 1, job.residual ? job.residual + place : nullptr, job.out + place, ldo};
  if (job.out_codes) e.codes = job.out_codes + place, e.to = &job.to;
  if (c.gains.size()) e.gains = c.gains.as<float>() + (size_t)job.group * c.columns_padded + column;
  (c.is_float() ? c.isa->epilogue_f32 : c.isa->epilogue_s32)(e);
}

// One pointer for each row from m0 to m1, then the last one again, so that a tile may read more than there are.
const void* const* row_pointers(const Rows& rows, int m0, int m1) {
  const void** pointers = static_cast<const void**>(scratch(Slot::kRows, sizeof(void*) * (m1 - m0 + kMaxRows)));
  for (int i = m0; i < m1;) {
    const int x = i % rows.out_w, width = std::min(rows.out_w - x, m1 - i);
    const char* first = rows.base + (ptrdiff_t)(i / rows.out_w) * rows.step_y + x * rows.step_x;
    const void** line = pointers + (i - m0);
    for (int j = 0; j < width; ++j) line[j] = first + j * rows.step_x;
    i += width;
  }
  for (int i = 0; i < kMaxRows; ++i) pointers[m1 - m0 + i] = pointers[m1 - m0 - 1];
  return pointers;
}

void add_corrections(const Job& job, const void* const* rows, int count, int panel, int panels, int q, int32_t* tile) {
  const eq_contraction& c = job.c;
  if (c.plans.empty()) return;
  const ptrdiff_t* segments = job.segments + (ptrdiff_t)q * c.segments;
  for (int i = 0; i < panels; ++i) {
    const PanelPlan& plan = c.plans[(size_t)job.group * c.panels + panel + i];
    const int from = q ? plan.group_ends[q - 1] : 0, to = plan.group_ends[q];
    for (int at = from; at < to; ++at) {
      const Correction& one = plan.corrections[at];
      const ptrdiff_t offset = segments[one.segment] + one.index;
      int32_t* sums = tile + i * kPanel + one.column;
      for (int r = 0; r < count; ++r, sums += panels * kPanel)
        *sums += one.value * static_cast<const uint8_t*>(rows[r])[offset];
    }
  }
}

// A stretch of the reduction: whole segments, or steps of one segment.
struct Stretch {
  int segment, segments, step, steps;
};

// How many steps of one segment are multiplied before the next row block: all, or so many that their weights stay in
// the first cache. Sums in 16 bits are widened at multiples of the depth, so a stretch ends at one too.
int stretch_steps(const eq_contraction& c, int panels, int depth) {
  const int start_bytes = c.starts.size() ? 4 * kPanel / depth : 0;
  const int step_bytes = panels * (kPanel * c.format->step * c.format->weight_bytes + start_bytes);
  const int unit = std::max({depth, kLeastStretch / c.format->step, 1});
  return std::max(kStretchBytes / step_bytes / unit, 1) * unit;
}

// Calls part(stretch) for all of one scale group, in order. High tiles read weights so seldom that the second cache
// will do. Floating-point sums are not divided: they would round in another way on another instruction set.
template <class Part>
void each_stretch(const eq_contraction& c, int count, int blocks, int panels, int depth, const Part& part) {
  const int most = stretch_steps(c, panels, depth);
  if (c.is_float() || blocks == 1 || count >= kHighTile || c.segments * c.steps <= most + most / 4)
    return part({0, c.segments, 0, c.steps});
  if (c.steps <= most) {
    const int together = std::max(1, most / c.steps);
    for (int s = 0; s < c.segments; s += together) part({s, std::min(together, c.segments - s), 0, c.steps});
    return;
  }
  for (int s = 0; s < c.segments; ++s)
    for (int step = 0; step < c.steps; step += most) part({s, 1, step, std::min(most, c.steps - step)});
}

// One scale group of `blocks` row blocks of `count` rows into the tile.
void multiply_group(const Job& job, const void* const* rows, int count, int blocks, int panel, int panels, int q,
                    const char* weights, ptrdiff_t stride, int32_t* tile) {
  const eq_contraction& c = job.c;
  const Format& f = *c.format;
  const size_t values = (size_t)count * blocks * panels * kPanel;
  const int depth = c.depth;
  const int16_t* start =
      c.starts.size() ? c.starts.as<int16_t>() + ((size_t)job.group * c.panels + panel) * c.panel_starts() : nullptr;
  alignas(64) int32_t more[kTileValues];
  each_stretch(c, count, blocks, panels, depth, [&](const Stretch& part) {
    const bool first = part.segment == 0 && part.step == 0;
    ptrdiff_t moved[1];
    const ptrdiff_t* segments = job.segments + (ptrdiff_t)q * c.segments + part.segment;
    if (part.step) {
      moved[0] = *segments + (ptrdiff_t)part.step * f.step * f.operand_bytes;
      segments = moved;
    }
    const size_t at = ((size_t)part.segment * c.steps + part.step) * kPanel * f.step * f.weight_bytes;
    const int16_t* starts = nullptr;
    if (start) starts = start + (((size_t)q * c.segments + part.segment) * c.runs() + part.step / depth) * 2 * kPanel;
    f.tiles[panels][count]({rows, blocks, segments, part.segments, part.steps, weights + at, stride, depth, first ? tile : more,
                            starts, start ? (ptrdiff_t)(c.panel_starts() * sizeof(int16_t)) : 0});
    if (first) return;
    for (size_t i = 0; i < values; ++i) tile[i] += more[i];
  });
}

// A single row by panels [p0, p1) as they are stored: it takes as long as the weights take to come.
void multiply_stored_row(const Job& job, int p0, int p1) {
  const eq_contraction& c = job.c;
  const void* row = job.rows.base;
  alignas(64) int32_t tile[kPanel];
  for (int p = p0; p < p1; ++p) {
    const int8_t* weights = c.stored.as<int8_t>() + ((size_t)job.group * c.panels + p) * c.panel_bytes;
    for (int q = 0; q < c.scale_groups; ++q) {
      const ptrdiff_t* segments = job.segments + (ptrdiff_t)q * c.segments;
      c.format->stored_row({&row, 1, segments, c.segments, c.steps, weights + c.group_values() * q, 0, 0, tile});
      finish_tile(job, tile, 1, 0, 1, p, q);
    }
  }
}

// Rows [m0, m1) by panels [p0, p1); decoded holds all panels, or is null and they are decoded group by group.
void multiply(const Job& job, int m0, int m1, int p0, int p1, const void* decoded) {
  const eq_contraction& c = job.c;
  if (job.m == 1 && c.format->stored_row && c.packed_bits == 8) return multiply_stored_row(job, p0, p1);
  const size_t stride = decoded_stride(c);
  alignas(64) int32_t tile[kTileValues];
  const void* const* rows = row_pointers(job.rows, m0, m1);
  for (int p = p0; p < p1; p += job.tile.panels) {
    const int panels = std::min(job.tile.panels, p1 - p);
    const char* weights = decoded ? static_cast<const char*>(decoded) + (size_t)p * stride
                                  : static_cast<const char*>(decode_panels(
                                        c, job.group, p, panels, scratch(Slot::kDecoded, stride * panels)));
    const int most = std::max(1, kBatchBytes / (job.tile.rows * panels * kPanel * 4));
    for (int row = m0; row < m1;) {
      const int count = std::min(job.tile.rows, m1 - row);
      const int blocks = std::max(1, std::min(most, (m1 - row) / job.tile.rows));
      for (int q = 0; q < c.scale_groups; ++q) {
        multiply_group(job, rows + (row - m0), count, blocks, p, panels, q,
                       weights + c.group_values() * c.format->weight_bytes * q, (ptrdiff_t)stride, tile);
        add_corrections(job, rows + (row - m0), count * blocks, p, panels, q, tile);
        finish_tile(job, tile, panels, row, count * blocks, p, q);
      }
      row += count * blocks;
    }
  }
}

const void* decode_all(const eq_contraction& c, int group) {
  if (const void* ready = ready_panels(c, group)) return ready;
  return decode_panels(c, group, 0, c.panels, scratch(Slot::kDecoded, decoded_stride(c) * c.panels));
}

// What a row of zeros gives, which stores and epilogues take off again: where sums begin elsewhere or are shifted.
void store_zero_sums(eq_contraction& c) {
  if (!c.starts.size() && !c.format->shifted) return;
  c.zero_sums = Bytes(sizeof(int32_t) * c.spec.groups * c.scale_groups * c.columns_padded);
  const std::vector<ptrdiff_t> segments((size_t)c.scale_groups * c.segments, 0);
  const std::vector<char> zeros((size_t)c.steps * c.format->step * c.format->operand_bytes + 64, 0);
  const void* row = zeros.data();
  for (int group = 0; group < c.spec.groups; ++group) {
    const Job job{c, group, 1, {}, segments.data(), {1, 1}, nullptr, nullptr, EQ_IDENTITY, nullptr, nullptr, nullptr};
    const char* panels = static_cast<const char*>(decode_all(c, group));
    for (int q = 0; q < c.scale_groups; ++q)
      for (int p = 0; p < c.panels; ++p) {
        int32_t* sums = c.zero_sums.as<int32_t>() + ((size_t)group * c.scale_groups + q) * c.columns_padded + p * kPanel;
        const char* weights = panels + p * decoded_stride(c) + c.group_values() * c.format->weight_bytes * q;
        multiply_group(job, &row, 1, 1, p, 1, q, weights, (ptrdiff_t)decoded_stride(c), sums);
      }
  }
}

// Rows that are worked on together: operands that stay in the cache, but enough tiles to pay for reading the panels.
int chunk_rows(int m, int tile_rows, size_t row_bytes) {
  const int threads = thread_count();
  int rows = std::max<int>(kLeastTiles * tile_rows, (int)(kChunkBytes / std::max<size_t>(row_bytes, 1)) / tile_rows * tile_rows);
  if (threads > 1) rows = std::min(rows, round_up((m + threads - 1) / threads, tile_rows));
  return std::min(rows, m);
}

// Runs rows that are ready. Many rows: chunks of rows; few: panels are divided among the threads.
void run_ready(const Job& job, size_t row_bytes) {
  const int threads = thread_count();
  const int chunk = chunk_rows(job.m, job.tile.rows, row_bytes);
  const int chunks = (job.m + chunk - 1) / chunk;
  if (chunks > 1 && (threads == 1 || job.m >= threads * job.tile.rows)) {
    const void* decoded = decode_all(job.c, job.group);
    return parallel_for(chunks, [&](int i) {
      multiply(job, i * chunk, std::min((i + 1) * chunk, job.m), 0, job.c.panels, decoded);
    });
  }
  const int groups = (job.c.panels + job.tile.panels - 1) / job.tile.panels;
  const int parts = std::min(threads, groups);
  parallel_for(parts, [&](int i) {
    const int first = groups * i / parts * job.tile.panels;
    const int last = std::min(groups * (i + 1) / parts * job.tile.panels, job.c.panels);
    multiply(job, 0, job.m, first, last, ready_panels(job.c, job.group));
  });
}

// Combined scales and zero-point corrections of one group, for one call.
void prepare_epilogue(Job& job, const eq_quantizer* q) {
  const eq_contraction& c = job.c;
  const size_t count = (size_t)c.scale_groups * c.columns_padded;
  const float* weight_scale = c.scales.as<float>() + (size_t)job.group * count;
  if (!q) {
    job.scale = weight_scale;
    job.correction = nullptr;
    return;
  }
  char* memory = static_cast<char*>(scratch(Slot::kScale, count * 8));
  float* scale = reinterpret_cast<float*>(memory);
  int32_t* correction = reinterpret_cast<int32_t*>(memory + count * 4);
  const int32_t* sums = c.sums.size() ? c.sums.as<int32_t>() + (size_t)job.group * count : nullptr;
  const int32_t* zeros = c.zero_sums.size() ? c.zero_sums.as<int32_t>() + (size_t)job.group * count : nullptr;
  const float unit = unit_of(*q);
  for (size_t i = 0; i < count; ++i) {
    scale[i] = unit * weight_scale[i];
    correction[i] = (sums ? sums[i] * q->zero_point : 0) + (zeros ? zeros[i] : 0);
  }
  job.scale = scale;
  job.correction = c.is_float() ? nullptr : correction;
}

void quantize_row(const eq_contraction& c, const float* x, size_t count, const QuantArgs& q, void* out) {
  if (c.is_float())
    c.isa->quantize_f32(x, count, q, static_cast<float*>(out));
  else if (c.format->operand_bytes == 1)
    c.isa->quantize_u8(x, count, q, static_cast<uint8_t*>(out));
  else
    c.isa->quantize_s16(x, count, q, static_cast<int16_t*>(out));
}

int check_quantizer(const eq_contraction& c, const eq_quantizer* q, const char* who) {
  if (c.spec.operand == EQ_OPERAND_F32) return q ? fail("%s: a floating-point handle takes no quantizer", who) : 0;
  if (!q) return fail("%s: this handle needs a quantizer of its activations", who);
  if (!(q->scale > 0.0f) || !std::isfinite(q->scale)) return fail("%s: scale must be positive, but got %g", who, (double)q->scale);
  const int top = q->log2_levels > 0 ? 1 << (q->log2_levels - 1) : q->q_max;
  if (q->log2_levels < 0 || q->log2_levels > 15 || top > c.spec.operand_max)
    return fail("%s: activations reach %d, but the weights were packed for at most %d", who, top, c.spec.operand_max);
  if (q->log2_levels == 0 && (q->q_min > q->zero_point || q->zero_point > q->q_max || q->q_min >= q->q_max))
    return fail("%s: expected q_min <= zero_point <= q_max, but got %d, %d, %d", who, q->q_min, q->zero_point, q->q_max);
  if (c.spec.operand == EQ_OPERAND_U8 && q->q_min < 0)
    return fail("%s: q_min must not be negative for u8 codes, but got %d", who, q->q_min);
  return check_levels(*q, who);
}

// The input of a product: real values and how they become codes, or codes already.
struct Input {
  const float* x;
  const uint8_t* codes;
  const eq_quantizer* q;

  ptrdiff_t value_bytes() const { return codes ? 1 : 4; }
  const char* bytes() const { return codes ? reinterpret_cast<const char*>(codes) : reinterpret_cast<const char*>(x); }
};

Input input_of(const float* x, const eq_quantizer* q, const eq_code_tensors* codes) { return {x, codes ? codes->x : nullptr, q}; }

// Values to the type of the format.
void load_row(const eq_contraction& c, const Input& input, const QuantArgs& args, const char* from, size_t count, void* out) {
  if (!input.codes) return quantize_row(c, reinterpret_cast<const float*>(from), count, args, out);
  if (c.format->operand_bytes == 2) return c.isa->widen_u8(reinterpret_cast<const uint8_t*>(from), count, static_cast<int16_t*>(out));
  std::memcpy(out, from, count);
}

int check_codes(const eq_contraction& c, const eq_code_tensors* codes, Job& job, const char* who) {
  if (!codes) return 0;
  if (codes->x && c.spec.operand != EQ_OPERAND_U8) return fail("%s: this handle takes no codes of 8 bits", who);
  if (!codes->out) return 0;
  if (c.scale_groups > 1) return fail("%s: weights with a scale per group give real values, no codes", who);
  if (check_result(*codes, who)) return -1;
  job.out_codes = codes->out;
  job.to = quant_args(*codes->to);
  return 0;
}

// A matrix product whose rows are made codes chunk by chunk, just before they are used.
void run_rows(Job& job, const Input& input, ptrdiff_t step_x, ptrdiff_t step_y, int out_w) {
  const eq_contraction& c = job.c;
  const int k = c.spec.in_channels;
  const ptrdiff_t size = c.format->operand_bytes, from_size = input.value_bytes();
  const ptrdiff_t pitch = round_up(k, c.format->align) * size;
  if (c.spec.operand == EQ_OPERAND_F32 || (input.codes && size == 1 && pitch == k)) {
    job.rows = {input.bytes(), step_x * from_size, step_y * from_size, out_w};
    return run_ready(job, (size_t)k * from_size);
  }
  const QuantArgs args = quant_args(*input.q);
  const Rows source{input.bytes(), step_x * from_size, step_y * from_size, out_w};
  const bool dense = step_x == k && pitch == k * size && (ptrdiff_t)out_w * step_x == step_y;
  const auto quantize = [&](int from, int to, char* out) {
    if (dense) return load_row(c, input, args, input.bytes() + (ptrdiff_t)from * k * from_size, (size_t)(to - from) * k, out);
    for (int i = from; i < to; ++i) load_row(c, input, args, source.at(i), (size_t)k, out + (i - from) * pitch);
  };
  const int threads = thread_count();
  const int chunk = chunk_rows(job.m, job.tile.rows, (size_t)k * (from_size + size));
  const int chunks = (job.m + chunk - 1) / chunk;
  if (chunks > 1 && (threads == 1 || job.m >= threads * job.tile.rows)) {
    const void* decoded = decode_all(c, job.group);
    return parallel_for(chunks, [&](int i) {
      const int from = i * chunk, to = std::min(from + chunk, job.m);
      char* codes = static_cast<char*>(scratch(Slot::kOperand, (size_t)chunk * pitch));
      quantize(from, to, codes);
      Job mine = job;
      mine.rows = {codes - from * pitch, pitch, 0, INT32_MAX};
      multiply(mine, from, to, 0, c.panels, decoded);
    });
  }
  char* codes = static_cast<char*>(scratch(Slot::kOperand, (size_t)job.m * pitch));
  quantize(0, job.m, codes);
  job.rows = {codes, pitch, 0, INT32_MAX};
  run_ready(job, (size_t)pitch);
}

struct ConvSize {
  int out_h, out_w, padded_h, padded_w;
};

ConvSize conv_size(const eq_contraction_spec& s, int h, int w) {
  return {(h + 2 * s.pad_h - s.dilation_h * (s.kernel_h - 1) - 1) / s.stride_h + 1,
          (w + 2 * s.pad_w - s.dilation_w * (s.kernel_w - 1) - 1) / s.stride_w + 1, h + 2 * s.pad_h, w + 2 * s.pad_w};
}

int check_conv(const eq_contraction_spec& s, int h, int w) {
  const ConvSize size = conv_size(s, h, w);
  const bool fits = size.padded_h >= s.dilation_h * (s.kernel_h - 1) + 1 && size.padded_w >= s.dilation_w * (s.kernel_w - 1) + 1;
  return fits && h > 0 && w > 0 ? 0 : fail("conv: a padded image of %d x %d is smaller than the kernel", size.padded_h, size.padded_w);
}

bool is_pointwise(const eq_contraction_spec& s) {
  return s.kernel_h == 1 && s.kernel_w == 1 && s.pad_h == 0 && s.pad_w == 0 && s.groups == 1;
}

// Byte offsets of all runs from the first value of a window, in an image whose rows are padded_w pixels.
const ptrdiff_t* conv_segments(const eq_contraction& c, int padded_w) {
  const eq_contraction_spec& s = c.spec;
  ptrdiff_t* offsets = static_cast<ptrdiff_t*>(scratch(Slot::kSegments, sizeof(ptrdiff_t) * c.scale_groups * c.segments));
  for (int g = 0; g < c.scale_groups; ++g)
    for (int i = 0; i < c.segments; ++i) {
      const int ky = c.whole_rows ? i : i / s.kernel_w, kx = c.whole_rows ? 0 : i % s.kernel_w;
      const ptrdiff_t pixel = (ptrdiff_t)ky * s.dilation_h * padded_w + (ptrdiff_t)kx * s.dilation_w;
      offsets[g * c.segments + i] = (pixel * s.in_channels + (ptrdiff_t)g * c.segment_k) * c.format->operand_bytes;
    }
  return offsets;
}

Job make_job(const eq_contraction& c, int m, int activation, const float* residual, float* out) {
  return {c, 0, m, {}, nullptr, choose_tile(*c.format, m, c.panels, c.segments * c.steps), nullptr, nullptr, activation, residual, out, nullptr};
}

// fill(row, out) writes one padded row.
template <class Fill>
const char* padded_image(const ConvSize& size, size_t row_bytes, const Fill& fill) {
  char* image = static_cast<char*>(scratch(Slot::kOperand, row_bytes * size.padded_h));
  const int tasks = std::min(thread_count() * 2, size.padded_h);
  parallel_for(tasks, [&](int t) {
    for (int y = size.padded_h * t / tasks; y < size.padded_h * (t + 1) / tasks; ++y) fill(y, image + y * row_bytes);
  });
  return image;
}

void fill_pad(const eq_contraction& c, int zero_point, char* out, size_t values) {
  if (c.is_float())
    std::memset(out, 0, values * 4);
  else if (c.format->operand_bytes == 1)
    std::memset(out, zero_point, values);
  else
    std::fill_n(reinterpret_cast<int16_t*>(out), values, (int16_t)zero_point);
}

void run_groups(Job& job, const char* image, int padded_w, const eq_quantizer* q) {
  const eq_contraction& c = job.c;
  const eq_contraction_spec& s = c.spec;
  const ptrdiff_t size = c.format->operand_bytes;
  const ptrdiff_t pixel = s.in_channels * size;
  job.segments = conv_segments(c, padded_w);
  for (job.group = 0; job.group < s.groups; ++job.group) {
    if (!job.out_s32) prepare_epilogue(job, q);
    job.rows.base = image + (ptrdiff_t)job.group * (s.in_channels / s.groups) * size;
    job.rows.step_x = s.stride_w * pixel;
    job.rows.step_y = (ptrdiff_t)s.stride_h * padded_w * pixel;
    run_ready(job, (size_t)pixel * s.stride_h * s.stride_w);
  }
}

void widen_codes(const uint8_t* codes, size_t count, int16_t* out) {
  for (size_t i = 0; i < count; ++i) out[i] = codes[i];
}

// Codes as the caller has them, to the type of the format.
void copy_codes(const eq_contraction& c, const void* codes, size_t at, size_t count, char* out) {
  if (c.spec.operand == EQ_OPERAND_U8 && c.format->operand_bytes == 2)
    widen_codes(static_cast<const uint8_t*>(codes) + at, count, reinterpret_cast<int16_t*>(out));
  else
    std::memcpy(out, static_cast<const char*>(codes) + at * c.format->operand_bytes, count * c.format->operand_bytes);
}

int check_integer(const eq_contraction& c, const char* who) {
  if (c.is_float()) return fail("%s: this handle has floating-point weights", who);
  if (c.scale_groups > 1) return fail("%s: weights with a scale per group have no single accumulator", who);
  return 0;
}

}  // namespace
}  // namespace eq

using namespace eq;

extern "C" {

int eq_contraction_create(eq_contraction** made, int isa, const eq_contraction_spec* spec, const int8_t* codes,
                          const float* weights, const float* scales, const float* bias) {
  const Isa* found = find_isa(isa);
  if (!found || check_spec(*spec)) return -1;
  std::unique_ptr<eq_contraction> c(new eq_contraction{});
  c->isa = found;
  c->spec = *spec;
  lay_out(*c);
  if (spec->operand == EQ_OPERAND_F32 || spec->operand == EQ_OPERAND_CODES_F32) {
    if (!weights) return fail("contraction: this operand takes f32 weights");
    pack_float(*c, weights);
  } else {
    if (!codes) return fail("contraction: this operand takes integer weights");
    if (pack_integer(*c, codes)) return -1;
    make_ready(*c);
    store_zero_sums(*c);
  }
  copy_scales(*c, scales, bias);
  *made = c.release();
  return 0;
}

void eq_contraction_set_gains(eq_contraction* handle, const float* gains) {
  eq_contraction& c = *handle;
  c.gains = Bytes(sizeof(float) * c.spec.groups * c.columns_padded);
  for (int channel = 0; channel < c.spec.out_channels; ++channel)
    c.gains.as<float>()[(size_t)(channel / c.columns) * c.columns_padded + channel % c.columns] = gains[channel];
}

void eq_contraction_destroy(eq_contraction* handle) { delete handle; }

size_t eq_contraction_bytes(const eq_contraction* handle) { return handle->stored.size(); }
const char* eq_contraction_format(const eq_contraction* handle) { return handle->format->name; }
int eq_contraction_depth(const eq_contraction* handle) { return handle->depth; }

int eq_gemm_f32(const eq_contraction* handle, const float* x, ptrdiff_t ldx, int m, const eq_quantizer* quantizer,
                int activation, const float* residual, float* out, const eq_code_tensors* codes) {
  const eq_contraction& c = *handle;
  if (!is_pointwise(c.spec)) return fail("gemm: this handle holds a convolution");
  Job job = make_job(c, std::max(m, 1), activation, residual, out);
  if (check_quantizer(c, quantizer, "gemm") || check_codes(c, codes, job, "gemm")) return -1;
  if (m < 1) return 0;
  job.segments = conv_segments(c, 1);
  prepare_epilogue(job, quantizer);
  run_rows(job, input_of(x, quantizer, codes), ldx, ldx * m, m);
  return 0;
}

int eq_gemm_s32(const eq_contraction* handle, const void* codes, int m, int32_t* out) {
  const eq_contraction& c = *handle;
  if (!is_pointwise(c.spec)) return fail("gemm_s32: this handle holds a convolution");
  if (check_integer(c, "gemm_s32")) return -1;
  if (m < 1) return 0;
  Job job = make_job(c, m, EQ_IDENTITY, nullptr, nullptr);
  job.out_s32 = out;
  job.segments = conv_segments(c, 1);
  const int k = c.spec.in_channels;
  const ptrdiff_t pitch = (ptrdiff_t)round_up(k, c.format->align) * c.format->operand_bytes;
  char* rows = static_cast<char*>(scratch(Slot::kOperand, (size_t)m * pitch));
  for (int i = 0; i < m; ++i) copy_codes(c, codes, (size_t)i * k, (size_t)k, rows + i * pitch);
  job.rows = {rows, pitch, 0, INT32_MAX};
  run_ready(job, (size_t)pitch);
  return 0;
}

int eq_conv_f32(const eq_contraction* handle, const float* x, int h, int w, const eq_quantizer* quantizer,
                int activation, const float* residual, float* out, const eq_code_tensors* codes) {
  const eq_contraction& c = *handle;
  const eq_contraction_spec& s = c.spec;
  if (check_conv(s, h, w) || check_quantizer(c, quantizer, "conv")) return -1;
  const ConvSize size = conv_size(s, h, w);
  Job job = make_job(c, size.out_h * size.out_w, activation, residual, out);
  if (check_codes(c, codes, job, "conv")) return -1;
  const Input input = input_of(x, quantizer, codes);
  if (is_pointwise(s)) {
    job.segments = conv_segments(c, 1);
    prepare_epilogue(job, quantizer);
    run_rows(job, input, (ptrdiff_t)s.stride_w * s.in_channels, (ptrdiff_t)s.stride_h * w * s.in_channels, size.out_w);
    return 0;
  }
  job.rows.out_w = size.out_w;
  const QuantArgs args = quantizer ? quant_args(*quantizer) : QuantArgs{};
  const ptrdiff_t bytes = c.format->operand_bytes;
  const ptrdiff_t pixel = s.in_channels * bytes;
  if (!quantizer && s.pad_h == 0 && s.pad_w == 0) {
    run_groups(job, reinterpret_cast<const char*>(x), w, nullptr);
    return 0;
  }
  const char* image = padded_image(size, (size_t)pixel * size.padded_w, [&](int y, char* row) {
    const int zero_point = quantizer ? quantizer->zero_point : 0;
    if (y < s.pad_h || y >= s.pad_h + h) return fill_pad(c, zero_point, row, (size_t)size.padded_w * s.in_channels);
    const char* source = input.bytes() + (ptrdiff_t)(y - s.pad_h) * w * s.in_channels * input.value_bytes();
    fill_pad(c, zero_point, row, (size_t)s.pad_w * s.in_channels);
    if (quantizer)
      load_row(c, input, args, source, (size_t)w * s.in_channels, row + s.pad_w * pixel);
    else
      std::memcpy(row + s.pad_w * pixel, source, (size_t)w * pixel);
    fill_pad(c, zero_point, row + (s.pad_w + w) * pixel, (size_t)s.pad_w * s.in_channels);
  });
  run_groups(job, image, size.padded_w, quantizer);
  return 0;
}

int eq_conv_s32(const eq_contraction* handle, const void* codes, int h, int w, int zero_point, int32_t* out) {
  const eq_contraction& c = *handle;
  const eq_contraction_spec& s = c.spec;
  if (check_conv(s, h, w) || check_integer(c, "conv_s32")) return -1;
  const ConvSize size = conv_size(s, h, w);
  Job job = make_job(c, size.out_h * size.out_w, EQ_IDENTITY, nullptr, nullptr);
  job.out_s32 = out;
  job.rows.out_w = size.out_w;
  const ptrdiff_t pixel = (ptrdiff_t)s.in_channels * c.format->operand_bytes;
  const char* image = padded_image(size, (size_t)pixel * size.padded_w, [&](int y, char* row) {
    fill_pad(c, zero_point, row, (size_t)size.padded_w * s.in_channels);
    if (y < s.pad_h || y >= s.pad_h + h) return;
    copy_codes(c, codes, (size_t)(y - s.pad_h) * w * s.in_channels, (size_t)w * s.in_channels, row + s.pad_w * pixel);
  });
  run_groups(job, image, size.padded_w, nullptr);
  return 0;
}

}  // extern "C"
