/* Cross-entropy of a linear map's outputs, and the gradients of its inputs and weights.

   A block of tokens goes through the vocabulary tile by tile: its logits (float32, in cache) become
   terms of the softmax, which at once meet the weights again for the gradient of the tokens. They
   are kept in bfloat16 for the gradient of the weights, which waits for the sums. The softmax is
   shifted by the highest logit of the first tile: where others lie so far above it that a sum
   leaves float32's range, the caller is told and takes the slow way. The target's own term, which
   may cancel nearly all, stays float32. A block of tokens, or a tile of weights, is computed by one
   thread in one order, so bits do not depend on threads. */
#include "bf16.h"
#include "parallel.h"

#ifdef HAS_BF16

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LOG2_OF_E 1.44269504f
#define LOG_OF_2 0.693147181f

/* The version of these kernels, 0 where the processor cannot run them. */
int loss_version(void)
{
    return bf16_is_supported() ? 2 : 0;
}

/* ---- scores of rows of logits ---- */

enum { ROWS = 8 }; /* of an item of work */

typedef struct {
    const bf16 *logits;     /* [rows, columns] */
    const int64_t *targets; /* [rows], each within the columns */
    float *scores;          /* [rows]: the targets' log-likelihoods */
    long rows, columns;
} Rows;

/* A vector of logits, of which the first `left` are there; the others are minus infinity. */
INLINE __m512 load(const bf16 *from, long left)
{
    __mmask16 there = first(left);
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), there, load_bf16(from, there));
}

FAST static void some_rows(void *context, long item, int thread)
{
    const Rows *rows = context;
    (void)thread;
    long columns = rows->columns, start = item * ROWS;
    long end = start + ROWS < rows->rows ? start + ROWS : rows->rows;
    for (long i = start; i < end; i++) {
        const bf16 *row = rows->logits + i * columns;
        __m512 highest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (long j = 0; j < columns; j += LANES)
            highest = _mm512_max_ps(highest, load(row + j, columns - j));
        float first_of = _mm512_reduce_max_ps(highest) * LOG2_OF_E;
        for (long j = 0; j < columns; j += LANES)
            sum = _mm512_add_ps(sum, exp2_of(_mm512_fmsub_ps(load(row + j, columns - j),
                                                             _mm512_set1_ps(LOG2_OF_E),
                                                             _mm512_set1_ps(first_of))));
        float chosen = _mm512_cvtss_f32(load_bf16(row + rows->targets[i], 1));
        float log2_of_sum = log2f(_mm512_reduce_add_ps(sum));
        rows->scores[i] = (fmaf(chosen, LOG2_OF_E, -first_of) - log2_of_sum) * LOG_OF_2;
    }
}

int loss_rows(const bf16 *logits, const int64_t *targets, float *scores, long rows, long columns,
               int num_threads)
{
    Rows all = {logits, targets, scores, rows, columns};
    parallel(some_rows, &all, (rows + ROWS - 1) / ROWS, num_threads);
    return 0;
}

/* ---- the loss of a chunk of tokens and all its gradients ---- */

enum { TOKENS = 128, VECTORS = TOKENS / LANES, TILE = 128, DEPTH = 64 };

typedef struct {
    const bf16 *hidden, *weight;  /* [tokens, width], [vocab, width] */
    pair *turned;                 /* [vocab / TILE][width][TILE / 2]: weight, pairs along the ids */
    const int64_t *targets;       /* [tokens] */
    float *scores;                /* [tokens] */
    bf16 *d_hidden;               /* [tokens, width] */
    float *d_weight;              /* [vocab, width], added to */
    bf16 *terms;                  /* [padded / TOKENS][vocab][TOKENS]: 2^(x - first) */
    pair *shares;                 /* [padded / 2, width]: hidden over the sum of its terms */
    float *rests;                 /* [tokens]: the gradient of the target's logit */
    long tokens, padded, width, vocab;
    float scale;
    int overflows;
    char *scratch;
    long bytes; /* of a thread's scratch */
} Chunk;

typedef struct {
    float x[TILE * TOKENS];        /* logits, a row an id and a lane a token */
    pair pairs[TILE / 2 * TOKENS]; /* terms, pairs along the ids */
    float first[TOKENS], sums[TOKENS], chosen[TOKENS], term[TOKENS];
    /* then the tokens turned [width / 2][TOKENS], their gradient [width][TOKENS], that as it is */
} Block;

/* The terms of a tile of logits, in the layouts of both products, and what they add to the sums. */
FAST static void exponentiate(Block *block, bf16 *terms, long rows)
{
    const __m512 log2_of_e = _mm512_set1_ps(LOG2_OF_E);
    for (int j = 0; j < TOKENS; j += LANES) {
        __m512 first_of = _mm512_loadu_ps(block->first + j), sum = _mm512_loadu_ps(block->sums + j);
        __m512 other = _mm512_setzero_ps();
        for (long v = 0; v < rows; v += 2) {
            const float *x = block->x + v * TOKENS + j;
            __m512 even = _mm512_loadu_ps(x), odd = _mm512_loadu_ps(x + TOKENS);
            even = exp2_of(_mm512_fmsub_ps(even, log2_of_e, first_of));
            odd = exp2_of(_mm512_fmsub_ps(odd, log2_of_e, first_of));
            __m512i both = pairs_of(even, odd), above = _mm512_srli_epi32(both, 16);
            _mm512_storeu_si512(block->pairs + v / 2 * TOKENS + j, both);
            bf16 *to = terms + v * TOKENS + j;
            _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(both));
            _mm256_storeu_si256((__m256i *)(to + TOKENS), _mm512_cvtepi32_epi16(above));
            /* summed as rounded: what is left beside a probability near 1 stays right */
            sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)));
            other = _mm512_add_ps(other, _mm512_castsi512_ps(_mm512_slli_epi32(above, 16)));
        }
        _mm512_storeu_ps(block->sums + j, _mm512_add_ps(sum, other));
    }
}

/* The highest logit of a token in the first tile, base 2: near enough to the highest of all. */
FAST static void look_first(Block *block, long rows)
{
    for (int j = 0; j < TOKENS; j += LANES) {
        __m512 highest = _mm512_loadu_ps(block->x + j);
        for (long v = 1; v < rows; v++)
            highest = _mm512_max_ps(highest, _mm512_loadu_ps(block->x + v * TOKENS + j));
        _mm512_storeu_ps(block->first + j, _mm512_mul_ps(highest, _mm512_set1_ps(LOG2_OF_E)));
    }
}

/* Notes the targets among the tile's ids, whose terms leave the products: they are exact later. */
FAST static void take_targets(const int64_t *targets, Block *block, bf16 *terms, long count,
                              long v0, long rows)
{
    for (long i = 0; i < count; i++) {
        int64_t v = targets[i] - v0;
        if (v < 0 || v >= rows)
            continue;
        bf16 *term = terms + v * TOKENS + i;
        block->chosen[i] = fmaf(block->x[v * TOKENS + i], LOG2_OF_E, -block->first[i]);
        block->term[i] = _mm512_cvtss_f32(load_bf16(term, 1));
        *term = 0;
        block->pairs[v / 2 * TOKENS + i] &= v % 2 ? 0x0000ffffu : 0xffff0000u;
    }
}

/* Scores, the gradients of the tokens, and their shares in the gradient of the weights. */
FAST static void finish(Chunk *chunk, const Block *block, const float *d_tokens, long start,
                        long count)
{
    long width = chunk->width;
    float share[TOKENS] = {0};
    for (long i = 0; i < count; i++) {
        float sum = block->sums[i];
        if (!(sum > 0 && sum < 0x1p96f)) /* a NaN, or logits far above the first ones */
            __atomic_store_n(&chunk->overflows, 1, __ATOMIC_RELAXED);
        share[i] = chunk->scale / sum;
        float rest = (block->term[i] / sum - 1) * chunk->scale;
        chunk->rests[start + i] = rest;
        chunk->scores[start + i] = (block->chosen[i] - log2f(sum)) * LOG_OF_2;
        const bf16 *row = chunk->weight + chunk->targets[start + i] * width;
        for (long k = 0; k < width; k += LANES) {
            __m512 d = _mm512_mul_ps(load_bf16(row + k, 0xffff), _mm512_set1_ps(rest));
            __m512 others = _mm512_loadu_ps(d_tokens + i * width + k);
            d = _mm512_fmadd_ps(others, _mm512_set1_ps(share[i]), d);
            store_bf16(chunk->d_hidden + (start + i) * width + k, d, 0xffff);
        }
    }
    for (long i = 0; i < TOKENS; i += 2)
        for (long k = 0; k < width; k += LANES) {
            const bf16 *row = chunk->hidden + (start + i) * width + k;
            __m512 low = load_bf16(row, i < count ? 0xffff : 0);
            __m512 high = load_bf16(row + width, i + 1 < count ? 0xffff : 0);
            low = _mm512_mul_ps(low, _mm512_set1_ps(share[i]));
            high = _mm512_mul_ps(high, _mm512_set1_ps(share[i + 1]));
            _mm512_storeu_si512(chunk->shares + (start + i) / 2 * width + k, pairs_of(low, high));
        }
}

/* A block of tokens against the whole vocabulary. */
FAST static void some_tokens(void *context, long item, int thread)
{
    Chunk *chunk = context;
    long start = item * TOKENS, width = chunk->width, left = chunk->tokens - start;
    long count = left < TOKENS ? left : TOKENS;
    Block *block = (Block *)(chunk->scratch + thread * chunk->bytes);
    pair *tokens = (pair *)(block + 1);
    float *d_turned = (float *)(tokens + width / 2 * TOKENS), *d_tokens = d_turned + width * TOKENS;
    transpose(tokens, TOKENS, chunk->hidden + start * width, width / 2, count, width / 2);
    memset(d_turned, 0, sizeof(float) * (size_t)(width * TOKENS));
    memset(block->sums, 0, sizeof block->sums);
    for (long v = 0; v < chunk->vocab; v += TILE) {
        long rows = chunk->vocab - v < TILE ? chunk->vocab - v : TILE;
        for (long k = 0; k < width / 2; k += DEPTH) { /* so few pairs of tokens stay in cache */
            long depth = width / 2 - k < DEPTH ? width / 2 - k : DEPTH;
            product(block->x, TOKENS, (const pair *)(chunk->weight + v * width) + k, width / 2,
                    tokens + k * TOKENS, TOKENS, rows, VECTORS, depth, k > 0);
        }
        if (v == 0)
            look_first(block, rows);
        bf16 *terms = chunk->terms + start * chunk->vocab + v * TOKENS;
        exponentiate(block, terms, rows);
        take_targets(chunk->targets + start, block, terms, count, v, rows);
        product(d_turned, TOKENS, chunk->turned + v / 2 * width, TILE / 2, block->pairs, TOKENS,
                width, VECTORS, rows / 2, 1);
    }
    transpose((pair *)d_tokens, width, d_turned, TOKENS, width, TOKENS);
    finish(chunk, block, d_tokens, start, count);
}

/* What all tokens of the chunk add to the gradient of a tile of weights. */
FAST static void some_weights(void *context, long item, int thread)
{
    const Chunk *chunk = context;
    (void)thread;
    long v = item * TILE, width = chunk->width, padded = chunk->padded;
    long rows = chunk->vocab - v < TILE ? chunk->vocab - v : TILE;
    for (long n = 0; n < padded; n += TOKENS)
        product(chunk->d_weight + v * width, width,
                (const pair *)(chunk->terms + n * chunk->vocab + v * TOKENS), TOKENS / 2,
                chunk->shares + n / 2 * width, width, rows, width / LANES, TOKENS / 2, 1);
}

/* Makes `turned` of a tile of weights. */
FAST static void turn(void *context, long item, int thread)
{
    const Chunk *chunk = context;
    long v = item * TILE, width = chunk->width;
    long rows = chunk->vocab - v < TILE ? chunk->vocab - v : TILE;
    pair *pairs = (pair *)(chunk->scratch + thread * chunk->bytes);
    pair_rows(pairs, rows / 2, chunk->weight + v * width, width, rows, width);
    transpose(chunk->turned + v / 2 * width, TILE / 2, pairs, width, rows / 2, width);
}

/* A target's own part of the gradient of the weights; of all, by one thread in their order. */
FAST static void add_target(const Chunk *chunk, long i)
{
    long width = chunk->width;
    float *to = chunk->d_weight + chunk->targets[i] * width;
    for (long k = 0; k < width; k += LANES) {
        __m512 x = load_bf16(chunk->hidden + i * width + k, 0xffff);
        x = _mm512_mul_ps(x, _mm512_set1_ps(chunk->rests[i]));
        _mm512_storeu_ps(to + k, _mm512_add_ps(_mm512_loadu_ps(to + k), x));
    }
}

static int run(void (*task)(void *, long, int), Chunk *chunk, long num_items, long bytes,
               int num_threads)
{
    chunk->bytes = (bytes + 63) / 64 * 64;
    chunk->scratch = aligned_alloc(64, (size_t)chunk->bytes * (size_t)num_threads);
    if (!chunk->scratch)
        return -1;
    parallel(task, chunk, num_items, num_threads);
    free(chunk->scratch);
    return 0;
}

/* Turned weights, [vocab rounded up to TILE, width] bf16; 0, or -1 without memory. */
int loss_turn(const bf16 *weight, pair *turned, long vocab, long width, int num_threads)
{
    Chunk chunk = {.weight = weight, .turned = turned, .vocab = vocab, .width = width};
    return run(turn, &chunk, (vocab + TILE - 1) / TILE, TILE / 2 * width * 4, num_threads);
}

/* 0; -1 without memory; 1, with d_weight as it was, where logits are too far apart for this way.
   Width is a multiple of 16, vocab of 8, padded of TOKENS. */
int loss_chunk(const bf16 *hidden, const bf16 *weight, pair *turned, const int64_t *targets,
               float *scores, bf16 *d_hidden, float *d_weight, bf16 *terms, pair *shares,
               float *rests, long tokens, long padded, long width, long vocab, float scale,
               int num_threads)
{
    Chunk chunk = {hidden, weight, turned, targets, scores, d_hidden, d_weight, terms, shares,
                   rests, tokens, padded, width, vocab, scale, 0, 0, 0};
    long bytes = (long)sizeof(Block) + width * TOKENS * (2 + 4 + 4);
    if (run(some_tokens, &chunk, padded / TOKENS, bytes, num_threads))
        return -1;
    if (chunk.overflows)
        return 1;
    if (run(some_weights, &chunk, (vocab + TILE - 1) / TILE, 64, num_threads))
        return -1;
    for (long i = 0; i < tokens; i++)
        add_target(&chunk, i);
    return 0;
}

#else

int loss_version(void)
{
    return 0;
}

#endif
