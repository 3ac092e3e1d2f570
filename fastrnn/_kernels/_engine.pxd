# The engine's headers (src/kernels), as far as Cython uses them: the only declarations of its functions and structs.

from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from *:
    """
    #include <complex.h> /* as NumPy's headers do */
    #undef I             /* here it is the input size */
    """

cdef extern from "memory.h" nogil:
    enum:
        FASTRNN_LARGE_BLOCK
    ctypedef struct Block "fastrnn_block":
        void *start
        size_t size
    Block fastrnn_take_block(size_t)
    void fastrnn_give_block(Block)
    size_t fastrnn_spare_bytes()
    size_t fastrnn_release_memory()

cdef extern from "fastrnn.h" nogil:
    enum:
        FASTRNN_F32
        FASTRNN_F64
        FASTRNN_FORWARD
        FASTRNN_BACKWARD
        FASTRNN_KEEP_NOTHING
        FASTRNN_KEEP_ALL
        FASTRNN_BIAS_IH
        FASTRNN_BIAS_HH
        FASTRNN_PROJECTED
        FASTRNN_REVERSE
        FASTRNN_MOST_THREADS
    ctypedef enum fastrnn_status:
        FASTRNN_OK
        FASTRNN_STOPPED
    ctypedef struct fastrnn_spec:
        size_t size
        const char *cell
        int dtype
        int64_t I, H, P
        uint64_t options
    ctypedef struct fastrnn_stack:
        pass
    fastrnn_status fastrnn_stack_new(const fastrnn_spec *, int, int, fastrnn_stack **, char *)
    void fastrnn_stack_free(fastrnn_stack *)
    ctypedef struct fastrnn_batch:
        size_t size
        int64_t T, B
        const int64_t *lengths
        const int64_t *batch_sizes
        const uint8_t *mask
        const uint8_t *reset
        int64_t mask_step, mask_row, reset_step, reset_row
        int repeat_masked
    size_t fastrnn_map_size(int64_t, int64_t)
    size_t fastrnn_packed_map_size(int64_t, int64_t)
    fastrnn_status fastrnn_map(const fastrnn_batch *, void *, char *)
    void fastrnn_map_counts(const void *, int64_t *, int64_t *)
    ctypedef struct fastrnn_weights:
        size_t size
        void *weight_ih
        void *weight_hh
        void *bias_ih
        void *bias_hh
        void *weight_hr
        void *vector[8]
        int64_t ih_row, ih_column, hh_row, hh_column, hr_row, hr_column
        const uint8_t *gate_order
    size_t fastrnn_panels_size(const fastrnn_stack *, int)
    fastrnn_status fastrnn_pack(const fastrnn_stack *, const fastrnn_weights *, int, void *)
    ctypedef struct fastrnn_sequence:
        void *data
        int64_t step, row
    ctypedef struct fastrnn_call:
        size_t size
        const void *map
        int64_t T, B
        int keep, threads
        const fastrnn_weights *weights
        const void *panels
        const void *panels_backward
        fastrnn_sequence x, y
        const void *state[4]
        void *final_state[4]
        const uint8_t *x_masks
        double x_scale
        void *tape
        void *workspace
        size_t tape_size, workspace_size
        fastrnn_sequence dy, dx
        const void *dfinal_state[4]
        void *dstate[4]
        const fastrnn_weights *dweights
        int (*poll)(void *) except -1 nogil
        void *poll_context
    void fastrnn_call_sizes(const fastrnn_stack *, const fastrnn_call *, int, size_t *, size_t *)
    fastrnn_status fastrnn_forward(const fastrnn_stack *, const fastrnn_call *)
    fastrnn_status fastrnn_backward(const fastrnn_stack *, const fastrnn_call *)

    const char *fastrnn_engine()
    int fastrnn_engines(const char **, int)
    fastrnn_status fastrnn_use_engine(const char *)
    int fastrnn_get_threads()
    fastrnn_status fastrnn_set_threads(int)
    fastrnn_status fastrnn_check_settings(char *)

cdef extern from "threads.h" nogil:
    ctypedef struct Poll "fastrnn_poll":
        int (*ask)(void *) except -1 nogil
        void *context
    uint64_t fastrnn_current_mode()
    uint64_t fastrnn_flush_denormals()
    void fastrnn_restore_mode(uint64_t)

cdef extern from "kernels.h" nogil:
    enum: FASTRNN_CELLS
    enum: MOST_ENGINES "FASTRNN_MOST_ISAS + 1"  # and `blas`
    ctypedef struct fastrnn_cell_shape:
        const char *name
        int gates, accumulators, input_blocks, hidden_blocks, kept, inner, vectors, projects, has_reset, stages
    ctypedef struct fastrnn_layer:
        int cell
        fastrnn_cell_shape shape
        Py_ssize_t I, H, P, G, AH, KH, DH
        int has_bias_ih, has_bias_hh, projected, reverse
    ctypedef struct fastrnn_rows:
        void *data
        Py_ssize_t row, step
        int scattered
    ctypedef struct Run "fastrnn_run":
        const fastrnn_layer *layer
        Py_ssize_t T, B, chunk
        const Py_ssize_t *offsets
        const fastrnn_weights *weights
        fastrnn_rows x
        void *x_chunk
        void *h_rows
        Py_ssize_t ldh
        int ring
        void *h
        void *inner[3]
        void *kept
        void *inner_rows[3]
        Poll poll
    ctypedef struct ForwardRun "fastrnn_forward_run":
        Run run
        fastrnn_rows y
        void *sums
        void *bias
        void *unit
    ctypedef struct BackwardRun "fastrnn_backward_run":
        Run run
        fastrnn_rows dy, dx
        int add_to_dx
        void *dh
        void *dinner[3]
        void *dbias
        fastrnn_weights dweights
        void *dy_chunk
        void *dx_chunk
        void *dgates
        void *units
        void *dh_rows
        void *dunit
        void *h_prev
        void *inner_prev[3]
    void fastrnn_gather(const Run *, const fastrnn_rows *, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, void *)
    void fastrnn_scatter(const Run *, const fastrnn_rows *, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, const void *,
                         Py_ssize_t)
    Py_ssize_t fastrnn_next_chunk(const Run *, Py_ssize_t, int)
    ctypedef struct fastrnn_sums:
        void *at
        Py_ssize_t row, block, unit
    ctypedef struct fastrnn_cell_forward:
        Py_ssize_t n, H, unit, end
        fastrnn_sums sums
        void *kept
        const void *h_prev
        void *h
        Py_ssize_t ld_prev, ldh
        void *inner[3]
        void *inner_kept[3]
        const void *vector[8]
        void *rh
    ctypedef struct fastrnn_cell_backward:
        Py_ssize_t n, H, unit, end
        const void *kept
        const void *h_prev
        const void *h
        const void *inner[3]
        const void *inner_prev[3]
        const void *vector[8]
        const void *dy
        Py_ssize_t ld_prev, ldh, lddy
        void *dgates
        void *dh
        void *dinner[3]
        void *unprojected
        void *drh
    ctypedef struct fastrnn_cell:
        void (*forward)(const fastrnn_cell_forward *) noexcept nogil
        void (*backward)(const fastrnn_cell_backward *) noexcept nogil
        void (*reset_forward)(const fastrnn_cell_forward *) noexcept nogil
        void (*reset_backward)(const fastrnn_cell_backward *) noexcept nogil
    ctypedef struct fastrnn_matrix:
        const void *data
        Py_ssize_t row, column, block
        const uint8_t *order
    ctypedef struct fastrnn_table:
        const fastrnn_cell *cell
        void (*add_rows)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const void *, void *) noexcept nogil
        void (*tanh)(Py_ssize_t, const void *, void *) noexcept nogil
        void (*sigmoid)(Py_ssize_t, const void *, void *) noexcept nogil
        Py_ssize_t (*packed_size)(int, Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*pack_rows)(int, Py_ssize_t, Py_ssize_t, const fastrnn_matrix *, void *) noexcept nogil
        void (*pack_columns)(Py_ssize_t, Py_ssize_t, const fastrnn_matrix *, void *) noexcept nogil
        int (*multiply)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const void *, Py_ssize_t, Py_ssize_t, const void *, void *,
                        int, const Poll *) except -1 nogil
        int (*run_forward)(const ForwardRun *) except -1 nogil
        int (*run_backward)(const BackwardRun *) except -1 nogil
    ctypedef struct fastrnn_isa:
        const char *name
        int lanes_f32
        const fastrnn_table *table[2]
    const fastrnn_cell_shape fastrnn_cell_shapes[]
    double fastrnn_seconds()


cdef extern from "dispatch.h" nogil:
    ctypedef struct fastrnn_backend:
        int (*forward[2])(const ForwardRun *) except -1 nogil
        int (*backward[2])(const BackwardRun *) except -1 nogil
    void fastrnn_register_backend(const fastrnn_backend *)
    const fastrnn_isa *fastrnn_current_isa()
    int fastrnn_is_fused()
