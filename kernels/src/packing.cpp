// Weights in 1 to 7 bits: planes of 4, 2 and 1 bit, so that a vector is unpacked with shifts and masks alone.
#include <cstring>

#include "isa.h"

namespace {
constexpr size_t kBlock = 256;
}

extern "C" {

size_t eq_packed_bytes(size_t count, int bits) { return (count + kBlock - 1) / kBlock * (size_t)(32 * bits); }

// In a block of 256 values, value 32 * v + i lies in vector v at byte i: plane of nibbles 2 vectors to a byte, plane of
// pairs 4, plane of single bits 8. A width is the sum of its planes: 7 = 4 + 2 + 1, 5 = 4 + 1, 3 = 2 + 1.
int eq_pack_bits(const uint8_t* indices, size_t count, int bits, uint8_t* packed) {
  if (bits < 1 || bits > 8) return eq::fail("pack_bits: expected 1 to 8 bits, but got %d", bits);
  std::memset(packed, 0, eq_packed_bytes(count, bits));
  const bool has4 = bits >= 4 && bits < 8, has2 = (bits & 3) >= 2 && bits < 8, has1 = bits & 1;
  for (size_t at = 0; at < count; ++at) {
    const unsigned value = indices[at];
    if (value >> bits) return eq::fail("pack_bits: value %u at %zu does not fit %d bits", value, at, bits);
    uint8_t* block = packed + at / kBlock * (size_t)(32 * bits);
    const size_t v = at % kBlock / 32, i = at % 32;
    if (bits == 8) {
      block[at % kBlock] = (uint8_t)value;
      continue;
    }
    uint8_t* pairs = block + (has4 ? 128 : 0);
    uint8_t* singles = pairs + (has2 ? 64 : 0);
    if (has4) block[v / 2 * 32 + i] |= (uint8_t)((value & 15) << (4 * (v & 1)));
    if (has2) pairs[v / 4 * 32 + i] |= (uint8_t)((value >> (has4 ? 4 : 0) & 3) << (2 * (v & 3)));
    if (has1) singles[i] |= (uint8_t)((value >> (bits - 1) & 1) << v);
  }
  return 0;
}

int eq_unpack_bits(const uint8_t* packed, size_t count, int bits, uint8_t* indices) {
  if (bits < 1 || bits > 8) return eq::fail("unpack_bits: expected 1 to 8 bits, but got %d", bits);
  const bool has4 = bits >= 4 && bits < 8, has2 = (bits & 3) >= 2 && bits < 8, has1 = bits & 1;
  for (size_t at = 0; at < count; ++at) {
    const uint8_t* block = packed + at / kBlock * (size_t)(32 * bits);
    const size_t v = at % kBlock / 32, i = at % 32;
    const uint8_t* pairs = block + (has4 ? 128 : 0);
    const uint8_t* singles = pairs + (has2 ? 64 : 0);
    unsigned value = bits == 8 ? block[at % kBlock] : 0;
    if (has4) value |= block[v / 2 * 32 + i] >> (4 * (v & 1)) & 15;
    if (has2) value |= (pairs[v / 4 * 32 + i] >> (2 * (v & 3)) & 3u) << (has4 ? 4 : 0);
    if (has1) value |= (singles[i] >> v & 1u) << (bits - 1);
    indices[at] = (uint8_t)value;
  }
  return 0;
}

}  // extern "C"
