// Attention of one image: softmax(q . k) . v, row block by row block, so that neither the scores nor their softmax ever
// fills more than a part of the first cache. Every number is that of the two products and the softmax apart. Where rows
// are relative, the weights of the values are exponentials, at most 1, and their sum divides what they give.
#include <algorithm>

#include "matmul.h"
#include "threads.h"

namespace eq {
namespace {

constexpr int kScoreBytes = 32 * 1024;
constexpr int kRowUnit = 16;

// Rows whose scores stay in the cache.
int block_rows(int m, int columns) {
  const int fit = kScoreBytes / (4 * columns);
  return std::min(m, fit >= kRowUnit ? fit / kRowUnit * kRowUnit : std::max(fit, kRowUnit / 4));
}

struct Memory {
  char* keys;
  char* values;
  char* rows;      // of the first product, as codes
  char* weights;   // of the second
  float* scores;
  float* inverse_sums;  // of rows of exponentials
};

Memory memory_for(const Product& scores, const Product& weighted, int rows) {
  const auto whole = [](size_t bytes) { return round_up(bytes + 256, (size_t)64); };
  const size_t sizes[] = {whole(second_bytes(scores)), whole(second_bytes(weighted)), whole(scores.row_bytes() * (size_t)rows),
                          whole(weighted.row_bytes() * (size_t)rows), whole((size_t)rows * scores.s.n * 4), (size_t)rows * 4};
  size_t total = 0;
  for (const size_t size : sizes) total += size;
  char* at = static_cast<char*>(scratch(Slot::kAttention, total));
  char* found[6];
  for (int i = 0; i < 6; ++i) {
    found[i] = at;
    at += sizes[i];
  }
  return {found[0], found[1], found[2], found[3], reinterpret_cast<float*>(found[4]),
          reinterpret_cast<float*>(found[5])};
}

// Rows of a first operand in the form that the product takes: codes in `memory`, or the real values where they are.
const char* first_operand(const Product& p, const float* x, ptrdiff_t row, int rows, char* memory, ptrdiff_t* pitch) {
  *pitch = p.qa ? p.row_bytes() : row * 4;
  if (!p.qa) return reinterpret_cast<const char*>(x);
  quantize_rows(p, x, row, rows, memory);
  return memory;
}

struct Call {
  const Product& scores;
  const Product& weighted;
  bool relative;
  int part;
};

void attend(const Call& call, const Second& keys, const Second& values, const float* q, int rows, const Memory& memory, float* out) {
  const Product &scores = call.scores, &weighted = call.weighted;
  const int n = scores.s.n;
  ptrdiff_t pitch;
  if (call.part != EQ_ATTENTION_WEIGHTED) {
    const char* first = first_operand(scores, q, scores.s.a_row, rows, memory.rows, &pitch);
    multiply_rows(scores, keys, first, pitch, rows, memory.scores, n);
    if (call.relative)
      scores.isa.exponentials(memory.scores, (size_t)rows, n, memory.scores, memory.inverse_sums);
    else
      scores.isa.softmax(memory.scores, (size_t)rows, n, memory.scores);
  }
  if (call.part == EQ_ATTENTION_SCORES) return;
  const char* first = first_operand(weighted, memory.scores, n, rows, memory.weights, &pitch);
  multiply_rows(weighted, values, first, pitch, rows, out, weighted.s.out_row);
  for (int r = 0; call.relative && r < rows; ++r, out += weighted.s.out_row)
    for (int j = 0; j < weighted.s.n; ++j) out[j] *= memory.inverse_sums[r];
}

}  // namespace
}  // namespace eq

using namespace eq;

extern "C" int eq_attention_f32(int isa, const eq_product* scores, const eq_product* weighted, const float* q, const float* k,
                                const float* v, int relative, float* out, int part) {
  const Isa* found = find_isa(isa);
  if (!found) return -1;
  const eq_matmul_shape &s = scores->shape, &w = weighted->shape;
  if (s.outer != w.outer || s.inner != w.inner || s.m != w.m || s.n != w.k)
    return fail("attention: scores of %d x %d rows of %d do not fit weights of %d x %d rows of %d", s.outer * s.inner, s.m, s.n,
                w.outer * w.inner, w.m, w.k);
  const ProductSpec first = spec_of(*scores), second = spec_of(*weighted);
  const std::optional<Product> qk = make_product(*found, first), av = make_product(*found, second);
  if (!qk || !av) return -1;
  const int items = s.outer * s.inner, block = block_rows(s.m, s.n), blocks = (s.m + block - 1) / block;
  // Few heads: each is divided among threads, which then pack its keys and values once each.
  const int shares = items % thread_count() ? std::min(thread_count(), blocks) : 1;
  parallel_for(items * shares, [&](int task) {
    const int item = task / shares, share = task % shares, outer = item / s.inner, inner = item % s.inner;
    const Memory memory = memory_for(*qk, *av, block);
    Second keys{}, values{};
    if (part != EQ_ATTENTION_WEIGHTED)
      keys = pack_second(*qk, k + outer * s.b_outer + inner * s.b_inner, scale_of(first, inner), memory.keys);
    else {
      std::fill_n(memory.scores, (size_t)block * s.n, 1.0f / (float)s.n);
      std::fill_n(memory.inverse_sums, block, 1.0f);
    }
    if (part != EQ_ATTENTION_SCORES)
      values = pack_second(*av, v + outer * w.b_outer + inner * w.b_inner, scale_of(second, inner), memory.values);
    const float* rows = q + outer * s.a_outer + inner * s.a_inner;
    float* target = out + outer * w.out_outer + inner * w.out_inner;
    for (int at = blocks * share / shares * block; at < std::min(blocks * (share + 1) / shares * block, s.m); at += block)
      attend({*qk, *av, relative != 0, part}, keys, values, rows + at * s.a_row, std::min(block, s.m - at), memory, target + at * w.out_row);
  });
  return 0;
}
