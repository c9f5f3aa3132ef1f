// AVX-VNNI: AVX2 with vpdpbusd, which adds four products to an int32 sum exactly at every width.
#include <immintrin.h>

#include "isa.h"

namespace eq {
namespace {

#include "avx2_base.inl"

template <int ROWS, int PANELS>
void tile_u8(const TileArgs& t) {
  tile_dot<ROWS, PANELS>(t, [](__m256i sum, __m256i x, __m256i w) { return _mm256_dpbusd_avx_epi32(sum, x, w); });
}

template <int ROWS, int PANELS>
void tile_s16_vnni(const TileArgs& t) {
  tile_dot<ROWS, PANELS>(t, [](__m256i sum, __m256i x, __m256i w) { return _mm256_dpwssd_avx_epi32(sum, x, w); });
}

double peak_u8(int, int64_t rounds) {
  return peak_loop(rounds, 32, [](__m256i sum, __m256i x, __m256i w) { return _mm256_dpbusd_avx_epi32(sum, x, w); });
}

Format make_u8() {
  Format f{};
  f.name = "u8s8";
  f.operand_bytes = f.weight_bytes = 1;
  f.step = f.align = 4;
  f.cycles = 1.0f;
  EQ_TILES(f, tile_u8)
  f.peak = peak_u8;
  return f;
}

Format make_s16_vnni() {
  Format f = make_s16();
  EQ_TILES(f, tile_s16_vnni)
  return f;
}

}  // namespace

const Isa* avx_vnni_isa() {
  static const Format f32 = make_f32(), u8 = make_u8(), s16 = make_s16_vnni();
  static const Isa isa = [] {
    Isa made = base_isa();
    made.id = EQ_ISA_AVX_VNNI;
    made.f32 = &f32;
    made.u8 = &u8;
    made.s16 = &s16;
    return made;
  }();
  return &isa;
}

}  // namespace eq
