/* Products of whole matrices, for layers that are not recurrent. */

typedef struct {
    product_t p;
    fastrnn_size rows;
} shared_product;

static void work_multiply(void *context, const fastrnn_member *me)
{
    const shared_product *shared = context;
    product_t p = shared->p;
    const int by_rows = shared->rows >= 8 * me->size;
    const span_t rows = share_of(by_rows ? me : &alone, shared->rows, 1);
    const span_t vectors = share_of(by_rows ? &alone : me, vector_count(p.units), 1);
    run_product(&p, me, rows.from, rows.to, vectors.from, vectors.to, 0, 0);
}

static int multiply_all(fastrnn_size M, fastrnn_size N, fastrnn_size K, const void *a, fastrnn_size a_row,
                        fastrnn_size a_k, const void *panels, void *c, int threads, const fastrnn_poll *poll)
{
    shared_product shared = {plain_product(K, N, panels, K, a, a_row, c), M};
    shared.p.a_k = a_k;
    if (2.0 * (double)M * (double)N * (double)K < FASTRNN_SHARED_CALL_FLOPS)
        threads = 1;
    return fastrnn_parallel(threads, work_multiply, &shared, poll);
}
