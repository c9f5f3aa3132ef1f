// A weight that is packed once, and the driver that multiplies rows of activations by it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "isa.h"

namespace eq {

// Aligned memory with 256 readable bytes after the end.
class Bytes {
 public:
  Bytes() = default;
  explicit Bytes(size_t size);
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  Bytes(Bytes&& other) noexcept;
  Bytes& operator=(Bytes&& other) noexcept;
  ~Bytes() { std::free(data_); }
  template <class T>
  T* as() const { return static_cast<T*>(data_); }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Where the rows of activations are: row i is pixel (i / out_w, i % out_w).
struct Rows {
  const char* base;
  ptrdiff_t step_x, step_y;
  int out_w;
  const char* at(int i) const { return base + (ptrdiff_t)(i / out_w) * step_y + (ptrdiff_t)(i % out_w) * step_x; }
};

QuantArgs quant_args(const eq_quantizer& q);
int check_levels(const eq_quantizer& q, const char* who);  // 0, or -1 with the reason
int check_result(const eq_code_tensors& codes, const char* who);  // likewise, of the codes that a product writes
float unit_of(const eq_quantizer& q);  // the real value of one integer

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }
inline size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// A product that is added apart: the part of a weight that the 16-bit sums of its lane have no room for.
struct Correction {
  int segment, index;  // of the activation: segments[segment] bytes and index more
  int column;          // of the panel
  int value;
};

// How one panel is added up in 16 bits.
struct PanelPlan {
  std::vector<Correction> corrections;  // [scale group][...], by ascending scale group
  std::vector<int> group_ends;          // end of each scale group among them
  std::vector<int16_t> starts;          // [scale group][segment][each depth steps][2 * kPanel]; empty where all are zero
  std::vector<int8_t> values;           // of the panel without what is added apart; empty once packed
};

// The format of unsigned bytes for runs of k values.
const Format* byte_format(const Isa& isa, int k);
// The format that is exact for all codes of 8 bits where that one needs a depth.
const Format* full_format(const Isa& isa, int k);

// Rows and panels of one tile, chosen for a number of rows.
struct TileShape {
  int rows, panels;
};
TileShape choose_tile(const Format& format, int m, int panels, int steps);

}  // namespace eq

struct eq_contraction {
  const eq::Isa* isa;
  eq_contraction_spec spec;
  const eq::Format* format;
  std::vector<eq::PanelPlan> plans;  // of 16-bit accumulation, [group][panel]; empty where it is not used
  int depth = 0;                     // of all plans
  eq::Bytes starts;                  // int16 of all plans, if they begin elsewhere than at zero
  eq::Bytes zero_sums;               // int32 [group][scale group][columns_padded]: of a row of zeros, if not zero
  int columns;          // output channels of one group
  int columns_padded;   // to whole panels
  int panels;           // of one group
  int scale_groups;     // along k
  bool whole_rows;      // a run is a whole row of the window, else one pixel of it
  int segments;         // contiguous runs of one scale group
  int segment_k;        // values of one run
  int steps;            // of one run
  size_t panel_values;  // of all scale groups
  size_t panel_bytes;   // stored
  int packed_bits;      // 8: stored as they are; 32: floating point
  eq::Bytes stored;     // [group][panel]
  eq::Bytes ready;      // the same as the format multiplies it, decoded once; empty where that would be large
  eq::Bytes sums;       // int32 [group][scale group][columns_padded]: column sums
  eq::Bytes scales;     // float, likewise
  eq::Bytes bias;       // float [group][columns_padded]
  eq::Bytes gains;      // likewise; empty where results have no factors

  int runs() const { return (steps + depth - 1) / depth; }  // of one segment, with plans
  size_t panel_starts() const { return (size_t)scale_groups * segments * runs() * 2 * eq::kPanel; }
  bool is_float() const { return format->is_float; }
  size_t group_values() const { return panel_values / scale_groups; }
};
