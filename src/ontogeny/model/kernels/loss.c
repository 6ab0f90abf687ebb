/* Cross-entropy of a linear map's outputs, and the gradients of its inputs and weights.

   Two blocks of tokens go through the vocabulary tile by tile: weights are rounded to bfloat16 as
   they are read; logits (float32, in cache) become terms of the softmax, which at once meet the
   weights again for the gradient of the tokens. Terms are kept in bfloat16 for the gradient of the
   weights, which waits for the sums; of so many tokens at a time as keep the threads busy. The
   softmax is shifted by the highest logit of the first tile: where others lie so far above it that
   a sum leaves float32's range, the caller is told and takes the slow way. The target's own term,
   which may cancel nearly all, stays float32. A tile of weights takes blocks of tokens in their
   order, each block is computed by one thread: bits depend neither on threads nor on the cut. */
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
    return bf16_is_supported() ? 3 : 0;
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
    long end = smaller(start + ROWS, rows->rows);
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

/* ---- the loss of tokens and all its gradients ---- */

enum { TOKENS = 128, TILE = 128, GROUP = 2, LEAST = 4 };

typedef struct {
    const bf16 *hidden;     /* [tokens, width] */
    const float *weight;    /* [vocab, width] */
    const int64_t *targets; /* [tokens] */
    float *scores;          /* [tokens] */
    bf16 *d_hidden;         /* [tokens, width] */
    float *d_weight;        /* [vocab, width], added to but for the first chunk */
    bf16 *terms;            /* [blocks][vocab][TOKENS]: 2^(x - first) */
    pair *shares;           /* [blocks][TOKENS / 2, width] in panels: hidden over the sum of its terms */
    float *rests;           /* [blocks * TOKENS]: the gradient of the target's logit */
    long tokens, width, vocab, blocks, group;
    float scale;
    int is_first, overflows;
    char *scratch;
    long bytes; /* of a thread's scratch */
} Chunk;

typedef struct {
    float first[TOKENS], sums[TOKENS], chosen[TOKENS], term[TOKENS];
    pair *tokens;    /* [width / 2][TOKENS] in panels */
    float *d_turned; /* [width][TOKENS]: their gradient */
} Block;

typedef struct {
    float x[TILE * TOKENS];        /* logits of a block, a row an id and a lane a token */
    pair pairs[TILE / 2 * TOKENS]; /* its terms in panels, pairs along the ids */
    bf16 *weight;                  /* [TILE][width] */
    pair *turned;                  /* [width][TILE / 2]: pairs along the ids */
    void *other;                   /* [TILE][width] float32 */
    Block blocks[GROUP];
} Tile;

/* Reads a tile of weights, in the layouts of both products. */
FAST static void read_weights(Tile *tile, const float *from, long rows, long width)
{
    for (long i = 0; i < rows * width; i += LANES)
        store_bf16(tile->weight + i, _mm512_loadu_ps(from + i), 0xffff);
    pair_rows(tile->other, rows / 2, tile->weight, width, rows, width);
    transpose(tile->turned, TILE / 2, tile->other, width, rows / 2, width);
}

/* The terms of a tile of logits, in the layouts of both products, and what they add to the sums. */
FAST static void exponentiate(Tile *tile, Block *block, bf16 *terms, long rows)
{
    const __m512 log2_of_e = _mm512_set1_ps(LOG2_OF_E);
    enum { VECTORS = PANEL / LANES };
    for (long j = 0; j < TOKENS; j += PANEL) {
        __m512 firsts[VECTORS], evens[VECTORS], odds[VECTORS];
        UNROLL for (long n = 0; n < VECTORS; n++) {
            firsts[n] = _mm512_loadu_ps(block->first + j + n * LANES);
            evens[n] = _mm512_loadu_ps(block->sums + j + n * LANES);
            odds[n] = _mm512_setzero_ps();
        }
        for (long v = 0; v < rows; v += 2) {
            const float *x = tile->x + v * TOKENS + j;
            pair *pairs = tile->pairs + place_in_panels(v / 2, j, rows / 2, TOKENS);
            bf16 *to = terms + v * TOKENS + j;
            UNROLL for (long n = 0; n < VECTORS; n++) {
                __m512 even = _mm512_loadu_ps(x + n * LANES);
                __m512 odd = _mm512_loadu_ps(x + TOKENS + n * LANES);
                even = exp2_of(_mm512_fmsub_ps(even, log2_of_e, firsts[n]));
                odd = exp2_of(_mm512_fmsub_ps(odd, log2_of_e, firsts[n]));
                __m512i both = pairs_of(even, odd), above = _mm512_srli_epi32(both, 16);
                _mm512_storeu_si512(pairs + n * LANES, both);
                _mm256_storeu_si256((__m256i *)(to + n * LANES), _mm512_cvtepi32_epi16(both));
                _mm256_storeu_si256((__m256i *)(to + TOKENS + n * LANES),
                                    _mm512_cvtepi32_epi16(above));
                /* summed as rounded: what is left beside a probability near 1 stays right */
                even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
                odd = _mm512_castsi512_ps(_mm512_slli_epi32(above, 16));
                evens[n] = _mm512_add_ps(evens[n], even);
                odds[n] = _mm512_add_ps(odds[n], odd);
            }
        }
        UNROLL for (long n = 0; n < VECTORS; n++)
            _mm512_storeu_ps(block->sums + j + n * LANES, _mm512_add_ps(evens[n], odds[n]));
    }
}

/* The highest logit of a token in the first tile, base 2: near enough to the highest of all. */
FAST static void look_first(const Tile *tile, Block *block, long rows)
{
    for (int j = 0; j < TOKENS; j += LANES) {
        __m512 highest = _mm512_loadu_ps(tile->x + j);
        for (long v = 1; v < rows; v++)
            highest = _mm512_max_ps(highest, _mm512_loadu_ps(tile->x + v * TOKENS + j));
        _mm512_storeu_ps(block->first + j, _mm512_mul_ps(highest, _mm512_set1_ps(LOG2_OF_E)));
    }
}

/* Notes the targets among the tile's ids, whose terms leave the products: they are exact later. */
FAST static void take_targets(const int64_t *targets, Tile *tile, Block *block, bf16 *terms,
                              long count, long v0, long rows)
{
    for (long i = 0; i < count; i++) {
        int64_t v = targets[i] - v0;
        if (v < 0 || v >= rows)
            continue;
        bf16 *term = terms + v * TOKENS + i;
        block->chosen[i] = fmaf(tile->x[v * TOKENS + i], LOG2_OF_E, -block->first[i]);
        block->term[i] = _mm512_cvtss_f32(load_bf16(term, 1));
        *term = 0;
        tile->pairs[place_in_panels(v / 2, i, rows / 2, TOKENS)] &= v % 2 ? 0xffff : 0xffff0000;
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
        const float *row = chunk->weight + chunk->targets[start + i] * width;
        for (long k = 0; k < width; k += LANES) {
            __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(row + k));
            __m512 d = load_bf16((const bf16 *)&rounded, 0xffff);
            d = _mm512_mul_ps(d, _mm512_set1_ps(rest));
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
            pair *to = chunk->shares + start / 2 * width;
            _mm512_storeu_si512(to + place_in_panels(i / 2, k, TOKENS / 2, width),
                                pairs_of(low, high));
        }
}

/* The tokens of a block. */
static long count_of(const Chunk *chunk, long block)
{
    return smaller(TOKENS, chunk->tokens - block * TOKENS);
}

/* A block of tokens against a tile of weights. */
FAST static void meet(const Chunk *chunk, Tile *tile, Block *block, long place, long v, long rows)
{
    long width = chunk->width;
    bf16 *terms = chunk->terms + (place * chunk->vocab + v) * TOKENS;
    product_of_panels(tile->x, TOKENS, (const pair *)tile->weight, width / 2, block->tokens, rows,
                      TOKENS, width / 2, 0);
    if (v == 0)
        look_first(tile, block, rows);
    exponentiate(tile, block, terms, rows);
    take_targets(chunk->targets + place * TOKENS, tile, block, terms, count_of(chunk, place), v,
                 rows);
    product_of_panels(block->d_turned, TOKENS, tile->turned, TILE / 2, tile->pairs, width, TOKENS,
                      rows / 2, 1);
}

/* A group of blocks of tokens against the whole vocabulary. */
FAST static void some_tokens(void *context, long item, int thread)
{
    Chunk *chunk = context;
    long start = item * chunk->group, width = chunk->width;
    long num_blocks = smaller(chunk->group, chunk->blocks - start);
    Tile *tile = (Tile *)(chunk->scratch + thread * chunk->bytes);
    tile->other = tile + 1;
    tile->turned = (pair *)((float *)tile->other + width * TILE);
    tile->weight = (bf16 *)(tile->turned + width * TILE / 2);
    bf16 *next = tile->weight + width * TILE;
    for (long b = 0; b < num_blocks; b++) {
        Block *block = tile->blocks + b;
        block->tokens = (pair *)next;
        block->d_turned = (float *)(block->tokens + width / 2 * TOKENS);
        next = (bf16 *)(block->d_turned + width * TOKENS);
        for (long j = 0; j < TOKENS; j += PANEL)
            transpose(block->tokens + j * width / 2, PANEL,
                      chunk->hidden + ((start + b) * TOKENS + j) * width, width / 2,
                      count_of(chunk, start + b) - j, width / 2);
        memset(block->d_turned, 0, sizeof(float) * (size_t)(width * TOKENS));
        memset(block->sums, 0, sizeof block->sums);
    }
    for (long v = 0; v < chunk->vocab; v += TILE) {
        long rows = smaller(TILE, chunk->vocab - v);
        read_weights(tile, chunk->weight + v * width, rows, width);
        for (long b = 0; b < num_blocks; b++)
            meet(chunk, tile, tile->blocks + b, start + b, v, rows);
    }
    for (long b = 0; b < num_blocks; b++) {
        transpose(tile->other, width, tile->blocks[b].d_turned, TOKENS, width, TOKENS);
        finish(chunk, tile->blocks + b, tile->other, (start + b) * TOKENS,
               count_of(chunk, start + b));
    }
}

/* A target's own part of the gradient of the weights. */
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

/* What all tokens of the chunk add to the gradient of a tile of weights. */
FAST static void some_weights(void *context, long item, int thread)
{
    const Chunk *chunk = context;
    (void)thread;
    long v = item * TILE, width = chunk->width;
    long rows = smaller(TILE, chunk->vocab - v);
    for (long b = 0; b < chunk->blocks; b++) {
        product_of_panels(chunk->d_weight + v * width, width,
                          (const pair *)(chunk->terms + (b * chunk->vocab + v) * TOKENS), TOKENS / 2,
                          chunk->shares + b * TOKENS / 2 * width, rows, width, TOKENS / 2,
                          b > 0 || !chunk->is_first);
        for (long i = b * TOKENS; i < b * TOKENS + count_of(chunk, b); i++)
            if (chunk->targets[i] >= v && chunk->targets[i] < v + rows)
                add_target(chunk, i);
    }
}

/* All of a chunk, whose scratch is there. */
static void sweep(Chunk *chunk, int num_threads)
{
    long blocks = (chunk->tokens + TOKENS - 1) / TOKENS;
    chunk->blocks = blocks;
    chunk->group = blocks < GROUP * num_threads ? 1 : GROUP;
    parallel(some_tokens, chunk, (blocks + chunk->group - 1) / chunk->group, num_threads);
    if (!chunk->overflows)
        parallel(some_weights, chunk, (chunk->vocab + TILE - 1) / TILE, num_threads);
}

/* Fills scores, d_hidden and d_weight. 0; -1 without memory; 1, with them half filled, where logits
   are too far apart for this way. Width is a multiple of 16, vocab of 8. */
int loss_sweep(const bf16 *hidden, const float *weight, const int64_t *targets, float *scores,
               bf16 *d_hidden, float *d_weight, long tokens, long width, long vocab, float scale,
               int num_threads)
{
    long most = LEAST > GROUP * num_threads ? LEAST : GROUP * num_threads; /* blocks of a chunk */
    most = TOKENS * (most < (tokens + TOKENS - 1) / TOKENS ? most : (tokens + TOKENS - 1) / TOKENS);
    long bytes = (long)sizeof(Tile) + width * (TILE * (4 + 2 + 2) + GROUP * TOKENS * (2 + 4));
    bytes = (bytes + 63) / 64 * 64;
    long all_bytes = bytes * num_threads + most * (width * 2 + vocab * 2 + 4);
    char *memory = aligned_alloc(64, (size_t)((all_bytes + 63) / 64 * 64));
    if (!memory)
        return -1;
    Chunk chunk = {.hidden = hidden, .weight = weight, .targets = targets, .scores = scores,
                   .d_hidden = d_hidden, .d_weight = d_weight, .width = width, .vocab = vocab,
                   .scale = scale, .is_first = 1, .scratch = memory, .bytes = bytes};
    chunk.terms = (bf16 *)(memory + bytes * num_threads);
    chunk.shares = (pair *)(chunk.terms + most * vocab);
    chunk.rests = (float *)(chunk.shares + most / 2 * width);
    for (long done = 0; done < tokens && !chunk.overflows; done += most) {
        chunk.tokens = tokens - done < most ? tokens - done : most;
        sweep(&chunk, num_threads);
        chunk.hidden += most * width;
        chunk.targets += most;
        chunk.scores += most;
        chunk.d_hidden += most * width;
        chunk.is_first = 0;
    }
    free(memory);
    return chunk.overflows;
}

#else

int loss_version(void)
{
    return 0;
}

#endif
