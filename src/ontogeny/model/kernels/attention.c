/* Causal attention in bfloat16, forward and backward.

   Blocks of 64 queries meet blocks of 64 keys; the softmax is kept online in float32, and the
   backward pass computes the weights again (Dao et al. 2022). Scores stand transposed, a row a key
   and a lane a query: so the highest and the sum over keys need no shuffles, and what is rounded
   to bfloat16 is an operand of the next product as it stands. Queries and keys are rotated as they
   are read, and their gradients back as they are written.

   Heads are independent and each is computed by one thread: bits do not depend on threads. */
#include "bf16.h"
#include "parallel.h"

/* The version of this kernel, 0 where the processor cannot run it. */
int attention_version(void)
{
    return bf16_is_supported();
}

#ifdef HAS_BF16

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 64, VECTORS = BLOCK / LANES, PAIRS = BLOCK / 2, AHEAD = 1, BACK = -1 };

typedef struct {
    const bf16 *qkv, *cos, *sin;    /* [B, T, H, 3D], [T, R], [T, R] */
    bf16 *out;                      /* [B, T, H, D] */
    float *statistics;              /* [B, H, 2, T]: highest score, log2 of the sum; base 2 */
    const bf16 *d_out;              /* [B, T, H, D] */
    bf16 *d_qkv;                    /* [B, T, H, 3D] */
    long time, heads, size, rotary; /* T, H, D, R */
    float scale, exponent;          /* of the scores: as numbers, as powers of 2 */
    long blocks, bytes;             /* of a head; of a thread's scratch */
    char *scratch;
} Call;

/* ---- rows of a head, in and out ---- */

static long rows_of(const Call *call, long block)
{
    long left = call->time - block * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

/* A row times `scale`, its first R numbers turned in planes (j, j + R/2) by the angles of place t,
   `way` AHEAD, BACK or 0. */
INLINE void move_row(bf16 *to, const void *from, int is_float, float scale, const Call *call,
                     long t, int way)
{
#define LOAD(j, mask) \
    (is_float ? _mm512_maskz_loadu_ps(mask, (const float *)from + (j)) \
              : load_bf16((const bf16 *)from + (j), mask))
    long half = way ? call->rotary / 2 : 0;
    for (long j = 0; j < call->size; j += LANES)
        store_bf16(to + j, _mm512_mul_ps(LOAD(j, 0xffff), _mm512_set1_ps(scale)), 0xffff);
    for (long j = 0; j < half; j += LANES) {
        __mmask16 mask = first(half - j);
        __m512 a = LOAD(j, mask), b = LOAD(half + j, mask);
        __m512 c = load_bf16(call->cos + t * call->rotary + j, mask);
        __m512 s = load_bf16(call->sin + t * call->rotary + j, mask);
        c = _mm512_mul_ps(c, _mm512_set1_ps(scale));
        s = _mm512_mul_ps(s, _mm512_set1_ps(scale * (float)way));
        store_bf16(to + j, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)), mask);
        store_bf16(to + half + j, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)), mask);
    }
#undef LOAD
}

/* to[64][D]: a block's rows, `stride` apart; zeros past the last. */
FAST static void read_rows(bf16 *to, const bf16 *from, long stride, const Call *call, long block,
                           int way)
{
    long size = call->size, rows = rows_of(call, block);
    from += block * BLOCK * stride;
    for (long i = 0; i < rows; i++, from += stride) {
        fetch_row(from + 8 * stride, size);
        move_row(to + i * size, from, 0, 1.0f, call, block * BLOCK + i, way);
    }
    memset(to + rows * size, 0, (size_t)((BLOCK - rows) * size) * sizeof(bf16));
}

/* A block's rows, `stride` apart, from from[64][D] times `scale`. */
FAST static void write_rows(bf16 *to, long stride, const float *from, float scale,
                            const Call *call, long block, int way)
{
    for (long i = 0; i < rows_of(call, block); i++)
        move_row(to + (block * BLOCK + i) * stride, from + i * call->size, 1, scale, call,
                 block * BLOCK + i, way);
}

/* The next `bytes` of a thread's scratch. */
static void *take(char **scratch, long bytes)
{
    void *place = *scratch;
    *scratch += bytes;
    return place;
}

/* ---- products of blocks; at the diagonal vector n of queries sees keys up to 16 (n + 1) ---- */

/* to[key][query] = rows[key][D] columns[D][query] for 16 keys from `key` on. */
FAST static void score(float *to, const pair *rows, const pair *columns, int key, long size,
                       int is_diagonal)
{
    int start = is_diagonal ? key : 0;
    product(to + start, BLOCK, rows + key * size / 2, size / 2, columns + start, BLOCK, LANES,
            VECTORS - start / LANES, size / 2, 0);
}

/* to[D][query] += rows[D][key] weights[key][query], in pairs of keys. */
FAST static void add_seen(float *to, const pair *rows, const pair *weights, long size,
                          int is_diagonal)
{
    if (!is_diagonal)
        product(to, BLOCK, rows, PAIRS, weights, BLOCK, size, VECTORS, PAIRS, 1);
    else
        for (int n = 0; n < BLOCK; n += LANES)
            product(to + n, BLOCK, rows, PAIRS, weights + n, BLOCK, size, 1, (n + LANES) / 2, 1);
}

/* to[key][D] += weights[key][query] from[query][D], in pairs of queries. */
FAST static void add_asked(float *to, const bf16 *weights, const pair *from, long size,
                           int is_diagonal)
{
    for (int key = 0; key < BLOCK; key += LANES) {
        int start = is_diagonal ? key / 2 : 0;
        product(to + key * size, size, (const pair *)weights + key * PAIRS + start, PAIRS,
                from + start * size, size, LANES, size / LANES, PAIRS - start, 1);
    }
}

/* The lanes of the vector at query n that may see a key of their block. */
INLINE __mmask16 visible(int key, int n, int is_diagonal)
{
    return is_diagonal && key > n ? (__mmask16)(0xffff << (key - n)) : 0xffff;
}

/* ---- forward ---- */

typedef struct {
    __m512 highest[VECTORS], sum[VECTORS]; /* of the scores so far, and of 2^(score - highest) */
    float scores[BLOCK * BLOCK];           /* [key][query] */
    pair weights[PAIRS * BLOCK];           /* [pair of keys][query] */
    float *out;                            /* [D][query], not yet over the sum */
} Queries;

/* Takes the 16 queries from n on past the scores of a block: its weights, what they sum to. */
INLINE void weigh(Queries *q, int n, const Call *call, int is_diagonal)
{
    const int keys = is_diagonal ? n + LANES : BLOCK, vector = n / LANES;
    const __m512 scale = _mm512_set1_ps(call->exponent);
    const __m512 hidden = _mm512_set1_ps(-INFINITY);
    __m512 even = hidden, odd = hidden;
    for (int key = 0; key < keys; key += 2) {
        const float *at = q->scores + key * BLOCK + n;
        __mmask16 first_mask = visible(key, n, is_diagonal);
        __mmask16 next_mask = visible(key + 1, n, is_diagonal);
        even = _mm512_max_ps(even, _mm512_mask_loadu_ps(hidden, first_mask, at));
        odd = _mm512_max_ps(odd, _mm512_mask_loadu_ps(hidden, next_mask, at + BLOCK));
    }
    __m512 highest = _mm512_mul_ps(_mm512_max_ps(even, odd), scale);
    highest = _mm512_max_ps(q->highest[vector], highest);
    __m512 shrunk = exp2_of(_mm512_sub_ps(q->highest[vector], highest));
    __m512 sum = _mm512_mul_ps(q->sum[vector], shrunk);
    for (int key = 0; key < keys; key += 2) {
        __m512 p[2];
        UNROLL for (int i = 0; i < 2; i++) {
            __mmask16 mask = visible(key + i, n, is_diagonal);
            __m512 x = _mm512_loadu_ps(q->scores + (key + i) * BLOCK + n);
            p[i] = _mm512_maskz_mov_ps(mask, exp2_of(_mm512_fmsub_ps(x, scale, highest)));
        }
        sum = _mm512_add_ps(sum, _mm512_add_ps(p[0], p[1]));
        _mm512_storeu_si512(q->weights + key / 2 * BLOCK + n, pairs_of(p[0], p[1]));
    }
    for (long d = 0; d < call->size; d++) {
        float *at = q->out + d * BLOCK + n;
        _mm512_storeu_ps(at, _mm512_mul_ps(shrunk, _mm512_loadu_ps(at)));
    }
    q->highest[vector] = highest;
    q->sum[vector] = sum;
}

/* Writes the rows of a block of queries that have seen all they may. */
FAST static void finish(Queries *q, float *rows, bf16 *out, float *statistics, const Call *call,
                        long block)
{
    for (int n = 0; n < VECTORS; n++) {
        long start = block * BLOCK + n * LANES;
        __mmask16 mask = start < call->time ? first(call->time - start) : 0;
        __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0f), q->sum[n]);
        _mm512_mask_storeu_ps(statistics + start, mask, q->highest[n]);
        _mm512_mask_storeu_ps(statistics + call->time + start, mask, log2_of(q->sum[n]));
        for (long d = 0; d < call->size; d++) {
            float *at = q->out + d * BLOCK + n * LANES;
            _mm512_storeu_ps(at, _mm512_mul_ps(share, _mm512_loadu_ps(at)));
        }
    }
    transpose((pair *)rows, call->size, q->out, BLOCK, call->size, BLOCK);
    write_rows(out, call->heads * call->size, rows, 1.0f, call, block, 0);
}

static long forward_bytes(const Call *call)
{
    return (long)sizeof(Queries) + (2 * call->blocks + 7) * BLOCK * call->size * 2;
}

FAST static void forward(void *context, long item, int thread)
{
    const Call *call = context;
    long size = call->size, width = call->heads * size, pairs = PAIRS * size, bytes = 4 * pairs;
    long place = item / call->heads * call->time * width + item % call->heads * size;
    const bf16 *from = call->qkv + 3 * place;
    char *scratch = call->scratch + thread * call->bytes;
    Queries *q = take(&scratch, sizeof(Queries));
    pair *keys = take(&scratch, call->blocks * bytes);
    pair *values = take(&scratch, call->blocks * bytes);
    pair *queries = take(&scratch, bytes), *paired = take(&scratch, bytes);
    bf16 *rows = take(&scratch, bytes);
    float *out_rows = take(&scratch, 2 * bytes);
    q->out = take(&scratch, 2 * bytes);
    for (long i = 0; i < call->blocks; i++) {
        read_rows((bf16 *)(keys + i * pairs), from + size, 3 * width, call, i, AHEAD);
        pair_rows(paired, PAIRS, from + 2 * size + i * BLOCK * 3 * width, 3 * width,
                  rows_of(call, i), size);
        transpose(values + i * pairs, PAIRS, paired, size, PAIRS, size);
    }
    for (long i = 0; i < call->blocks; i++) {
        read_rows(rows, from, 3 * width, call, i, AHEAD);
        transpose(queries, BLOCK, rows, size / 2, BLOCK, size / 2);
        memset(q->out, 0, (size_t)(2 * bytes));
        for (int n = 0; n < VECTORS; n++) {
            q->highest[n] = _mm512_set1_ps(-FLT_MAX);
            q->sum[n] = _mm512_setzero_ps();
        }
        for (long j = 0; j <= i; j++) {
            for (int key = 0; key < BLOCK; key += LANES)
                score(q->scores + key * BLOCK, keys + j * pairs, queries, key, size, i == j);
            for (int n = 0; n < BLOCK; n += LANES)
                if (i == j)
                    weigh(q, n, call, 1);
                else
                    weigh(q, n, call, 0);
            add_seen(q->out, values + j * pairs, q->weights, size, i == j);
        }
        finish(q, out_rows, call->out + place, call->statistics + item * 2 * call->time, call, i);
    }
}

/* ---- backward ---- */

/* What the backward pass needs of every block of queries of a head. */
typedef struct {
    pair *queries, *query_pairs, *d_out, *d_out_pairs; /* [blocks][32 D] */
    float *d_queries;                                  /* [blocks][D][64] */
    float *highest, *log_sum, *delta;                  /* [blocks][64] */
} Queried;

/* A block of keys against a block of queries. */
typedef struct {
    float scores[LANES * BLOCK], d_weights[LANES * BLOCK]; /* [16 keys][query] */
    bf16 weights[BLOCK * BLOCK], d_scores[BLOCK * BLOCK];  /* [key][query] */
    pair d_score_pairs[PAIRS * BLOCK];                     /* [pair of keys][query] */
} Meeting;

/* Reads the queries of a block, the gradients of their outputs, and of each their product. */
FAST static void read_queries(Queried *to, bf16 *rows, const Call *call, long offset, long block)
{
    long size = call->size, width = call->heads * size, pairs = block * PAIRS * size;
    long place = offset + block * BLOCK * width, num_rows = rows_of(call, block);
    const bf16 *out = call->out + place, *d_out = call->d_out + place;
    read_rows(rows, call->qkv + 3 * offset, 3 * width, call, block, AHEAD);
    transpose(to->queries + pairs, BLOCK, rows, size / 2, BLOCK, size / 2);
    pair_rows(to->query_pairs + pairs, PAIRS, rows, size, BLOCK, size);
    transpose(to->d_out + pairs, BLOCK, d_out, width / 2, num_rows, size / 2);
    pair_rows(to->d_out_pairs + pairs, PAIRS, d_out, width, num_rows, size);
    for (long i = 0; i < num_rows; i++, out += width, d_out += width) {
        __m512 sum = _mm512_setzero_ps();
        for (long j = 0; j < size; j += LANES)
            sum = _mm512_fmadd_ps(load_bf16(d_out + j, 0xffff), load_bf16(out + j, 0xffff), sum);
        to->delta[block * BLOCK + i] = _mm512_reduce_add_ps(sum);
    }
}

/* Of 16 keys and 16 queries from `key` and n on: the weights again, the gradients of scores. */
INLINE void weigh_again(Meeting *at, int key, int n, const Queried *q, long block,
                        const Call *call, int is_diagonal)
{
    const __m512 scale = _mm512_set1_ps(call->exponent);
    const __m512 highest = _mm512_loadu_ps(q->highest + block * BLOCK + n);
    const __m512 log_sum = _mm512_loadu_ps(q->log_sum + block * BLOCK + n);
    const __m512 delta = _mm512_loadu_ps(q->delta + block * BLOCK + n);
    const float *scores = at->scores + n, *d_weights = at->d_weights + n;
    for (int end = key + LANES; key < end; key += 2) {
        __m512 d[2];
        UNROLL for (int i = 0; i < 2; i++, scores += BLOCK, d_weights += BLOCK) {
            long place = (key + i) * BLOCK + n;
            __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores), scale, highest);
            __m512 p = _mm512_maskz_mov_ps(visible(key + i, n, is_diagonal),
                                           exp2_of(_mm512_sub_ps(x, log_sum)));
            d[i] = _mm512_mul_ps(p, _mm512_sub_ps(_mm512_loadu_ps(d_weights), delta));
            store_bf16(at->weights + place, p, 0xffff);
            store_bf16(at->d_scores + place, d[i], 0xffff);
        }
        _mm512_storeu_si512(at->d_score_pairs + key / 2 * BLOCK + n, pairs_of(d[0], d[1]));
    }
}

static long backward_bytes(const Call *call)
{
    return (long)sizeof(Meeting) + (6 * call->blocks + 11) * BLOCK * call->size * 2 +
           3 * call->blocks * BLOCK * (long)sizeof(float);
}

FAST static void backward(void *context, long item, int thread)
{
    const Call *call = context;
    long size = call->size, width = call->heads * size, blocks = call->blocks;
    long pairs = PAIRS * size, bytes = 4 * pairs, floats = blocks * BLOCK * (long)sizeof(float);
    long place = item / call->heads * call->time * width + item % call->heads * size;
    const float *statistics = call->statistics + item * 2 * call->time;
    const bf16 *from = call->qkv + 3 * place;
    bf16 *to = call->d_qkv + 3 * place;
    char *scratch = call->scratch + thread * call->bytes;
    Meeting *at = take(&scratch, sizeof(Meeting));
    Queried q = {.delta = take(&scratch, floats), .highest = take(&scratch, floats),
                 .log_sum = take(&scratch, floats), .queries = take(&scratch, blocks * bytes),
                 .query_pairs = take(&scratch, blocks * bytes),
                 .d_out = take(&scratch, blocks * bytes),
                 .d_out_pairs = take(&scratch, blocks * bytes)};
    bf16 *keys = take(&scratch, bytes), *values = take(&scratch, bytes);
    pair *paired = take(&scratch, bytes), *turned_keys = take(&scratch, bytes);
    float *d_keys = take(&scratch, 2 * bytes), *d_values = take(&scratch, 2 * bytes);
    float *rows = take(&scratch, 2 * bytes);
    q.d_queries = take(&scratch, 2 * blocks * bytes);
    memset(q.delta, 0, (size_t)floats);
    memset(q.highest, 0, (size_t)floats);
    memset(q.log_sum, 0, (size_t)floats);
    memset(q.d_queries, 0, (size_t)(2 * blocks * bytes));
    memcpy(q.highest, statistics, (size_t)call->time * sizeof(float));
    memcpy(q.log_sum, statistics + call->time, (size_t)call->time * sizeof(float));
    for (long i = 0; i < blocks; i++)
        read_queries(&q, (bf16 *)rows, call, place, i);
    for (long j = 0; j < blocks; j++) {
        read_rows(keys, from + size, 3 * width, call, j, AHEAD);
        read_rows(values, from + 2 * size, 3 * width, call, j, 0);
        pair_rows(paired, PAIRS, keys, size, BLOCK, size);
        transpose(turned_keys, PAIRS, paired, size, PAIRS, size);
        memset(d_keys, 0, (size_t)(2 * bytes));
        memset(d_values, 0, (size_t)(2 * bytes));
        for (long i = j; i < blocks; i++) {
            for (int key = 0; key < BLOCK; key += LANES) {
                score(at->scores, (pair *)keys, q.queries + i * pairs, key, size, i == j);
                score(at->d_weights, (pair *)values, q.d_out + i * pairs, key, size, i == j);
                if (i == j)
                    weigh_again(at, key, key, &q, i, call, 1);
                for (int n = i == j ? key + LANES : 0; n < BLOCK; n += LANES)
                    weigh_again(at, key, n, &q, i, call, 0);
            }
            add_asked(d_values, at->weights, q.d_out_pairs + i * pairs, size, i == j);
            add_asked(d_keys, at->d_scores, q.query_pairs + i * pairs, size, i == j);
            add_seen(q.d_queries + 2 * i * pairs, turned_keys, at->d_score_pairs, size, i == j);
        }
        write_rows(to + size, 3 * width, d_keys, call->scale, call, j, BACK);
        write_rows(to + 2 * size, 3 * width, d_values, 1.0f, call, j, 0);
    }
    for (long i = 0; i < blocks; i++) {
        transpose((pair *)rows, size, q.d_queries + 2 * i * pairs, BLOCK, size, BLOCK);
        write_rows(to, 3 * width, rows, call->scale, call, i, BACK);
    }
}

/* ---- what Python calls; tensors are contiguous; 1 where there is no memory, else 0 ---- */

static int compute(Call *call, const long *shape, long (*bytes)(const Call *),
                   void (*head)(void *, long, int), int num_threads)
{
    call->time = shape[1];
    call->heads = shape[2];
    call->size = shape[3];
    call->rotary = shape[4];
    call->scale = 1.0f / sqrtf((float)call->size);
    call->exponent = call->scale * 1.44269504f; /* log2(e) */
    call->blocks = (call->time + BLOCK - 1) / BLOCK;
    call->bytes = bytes(call);
    call->scratch = aligned_alloc(64, (size_t)(call->bytes * num_threads));
    if (!call->scratch)
        return 1;
    parallel(head, call, shape[0] * call->heads, num_threads);
    free(call->scratch);
    return 0;
}

/* Fills out [B, T, H, D] and statistics [B, H, 2, T] from qkv [B, T, H, 3D], cos and sin [T, R];
   `shape` is B, T, H, D, R. */
int attention_forward(const void *qkv, const void *cos, const void *sin, const long *shape,
                      void *out, void *statistics, int num_threads)
{
    Call call = {.qkv = qkv, .cos = cos, .sin = sin, .out = out, .statistics = statistics};
    return compute(&call, shape, forward_bytes, forward, num_threads);
}

/* Fills d_qkv [B, T, H, 3D] from d_out [B, T, H, D] and what the forward pass read and filled. */
int attention_backward(const void *qkv, const void *cos, const void *sin, const long *shape,
                       void *out, void *statistics, const void *d_out, void *d_qkv,
                       int num_threads)
{
    Call call = {.qkv = qkv, .cos = cos, .sin = sin, .out = out, .statistics = statistics,
                 .d_out = d_out, .d_qkv = d_qkv};
    return compute(&call, shape, backward_bytes, backward, num_threads);
}

#endif
