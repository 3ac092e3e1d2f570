/* Streaming audio through a saved LSTM, in C alone.
 *
 *     stream MODEL INPUT OUTPUT
 *
 * INPUT holds samples as raw float32 numbers, one after the other; "-" is standard input. Every I samples are a frame,
 * where I is the input size of the LSTM, and every frame is one step. Its output is written at once, as H raw float32
 * numbers (P, if the LSTM is projected), so this works on a pipe that never ends:
 *
 *     arecord -t raw -f FLOAT_LE -r 16000 -c 1 | ./stream model.safetensors - - | ...
 *
 * MODEL is written in Python:
 *
 *     layer = fastrnn.LSTM(160, 64, num_layers=2)  # 10 ms of sound at 16 kHz
 *     safetensors.numpy.save_file(layer.state_dict(), "model.safetensors")
 *
 * To compile it, ask the installed package where header and library are:
 *
 *     include=$(python -c 'import fastrnn; print(fastrnn.get_include())')
 *     library=$(python -c 'import fastrnn; print(fastrnn.get_library())')
 *     cc -std=c11 -O2 -I"$include" stream.c "$library" -Wl,-rpath,"$(dirname "$library")" -o stream
 *
 * The outputs have the bits of layer.stream().step(frame), and of layer(frames), on every machine with a fused engine. */
#include <fastrnn.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LAYERS = 16, MOST_TENSORS = 5 * MOST_LAYERS };

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("stream: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void *allocate(size_t size)
{
    void *memory = calloc(size ? size : 1, 1);
    if (!memory)
        fail("no memory for %zu bytes", size);
    return memory;
}

/* ---- safetensors -------------------------------------------------------------------------------------
 *
 * A file is the length of the header (8 bytes, little-endian), the header, and the data. The header is JSON:
 *
 *     {"__metadata__": {"key": "text"}, "bias_ih_l0": {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]}}
 *
 * This reads just that form of JSON. Nothing in the file is trusted: each offset and size is compared with what there
 * is before it is used. Numbers are copied as they are, so the machine has to be little-endian, as they all are. */

typedef struct {
    char name[64];
    int rank;
    int64_t shape[2], count;
    float *data;
} tensor_t;

typedef struct {
    int count;
    tensor_t tensors[MOST_TENSORS];
} file_t;

/* The header, as far as it has been read. */
typedef struct {
    const char *at, *end;
} text_t;

static char peek(text_t *text)
{
    while (text->at < text->end && strchr(" \t\r\n", *text->at) && *text->at)
        text->at++;
    return text->at < text->end ? *text->at : '\0';
}

static int accept(text_t *text, char c)
{
    if (peek(text) != c)
        return 0;
    text->at++;
    return 1;
}

static void expect(text_t *text, char c)
{
    if (!accept(text, c))
        fail("the header of the model is not as expected: no '%c' before \"%.*s\"", c,
             (int)(text->end - text->at < 20 ? text->end - text->at : 20), text->at);
}

/* Escapes stay as they are: no name that is looked for has one. */
static void read_string(text_t *text, char *to, size_t size)
{
    size_t length = 0;
    expect(text, '"');
    for (; text->at < text->end && *text->at != '"'; text->at++) {
        const int escaped = *text->at == '\\' && text->at + 1 < text->end;
        for (int k = 0; k <= escaped; k++)
            if (length + 1 < size)
                to[length++] = text->at[k];
        text->at += escaped;
    }
    to[length] = '\0';
    expect(text, '"');
}

/* [a, b, ...], at most `most` of them, none negative; returns how many there were. */
static int read_numbers(text_t *text, int64_t *to, int most)
{
    int count = 0;
    expect(text, '[');
    while (peek(text) != ']') {
        int64_t n = 0;
        if (count == most)
            fail("the model has a tensor of more than %d dimensions", most);
        if (count)
            expect(text, ',');
        if (peek(text) < '0' || peek(text) > '9')
            fail("the header of the model is not as expected: no number");
        for (; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++) {
            if (n > INT64_MAX / 10 - 1)
                fail("the model has a number that is too large");
            n = 10 * n + (*text->at - '0');
        }
        to[count++] = n;
    }
    expect(text, ']');
    return count;
}

static void read_metadata(text_t *text)
{
    char ignored[1];
    expect(text, '{');
    for (int k = 0; peek(text) != '}'; k++) {
        if (k)
            expect(text, ',');
        read_string(text, ignored, sizeof ignored);
        expect(text, ':');
        read_string(text, ignored, sizeof ignored);
    }
    expect(text, '}');
}

static void read_tensor(text_t *text, tensor_t *tensor, const char *data, int64_t data_size)
{
    char key[16], dtype[8] = "";
    int64_t offsets[2] = {0, 0};
    int has_offsets = 0;
    tensor->rank = -1;
    expect(text, '{');
    for (int k = 0; peek(text) != '}'; k++) {
        if (k)
            expect(text, ',');
        read_string(text, key, sizeof key);
        expect(text, ':');
        if (!strcmp(key, "dtype"))
            read_string(text, dtype, sizeof dtype);
        else if (!strcmp(key, "shape"))
            tensor->rank = read_numbers(text, tensor->shape, 2);
        else if (!strcmp(key, "data_offsets"))
            has_offsets = read_numbers(text, offsets, 2) == 2;
        else
            fail("%s has \"%s\", which no safetensors file has", tensor->name, key);
    }
    expect(text, '}');
    if (strcmp(dtype, "F32"))
        fail("%s is %s, expected F32", tensor->name, *dtype ? dtype : "of no dtype");
    if (tensor->rank < 1 || !has_offsets || offsets[0] > offsets[1] || offsets[1] > data_size)
        fail("%s lies outside of the file, or has no shape", tensor->name);
    const int64_t bytes = offsets[1] - offsets[0], room = bytes / (int64_t)sizeof(float);
    tensor->count = 1;
    for (int k = 0; k < tensor->rank; k++) {
        if (tensor->shape[k] < 1 || tensor->shape[k] > room / tensor->count)
            fail("%s has a shape that does not fit its data", tensor->name);
        tensor->count *= tensor->shape[k];
    }
    if (tensor->count * (int64_t)sizeof(float) != bytes)
        fail("%s has a shape that does not fit its data", tensor->name);
    /* A copy: floats begin at a multiple of four bytes in it, whatever the file does. */
    tensor->data = allocate((size_t)bytes);
    memcpy(tensor->data, data + offsets[0], (size_t)bytes);
}

static char *read_all(const char *path, int64_t *size)
{
    FILE *in = fopen(path, "rb");
    if (!in || fseek(in, 0, SEEK_END) || (*size = ftell(in)) < 0 || fseek(in, 0, SEEK_SET))
        fail("%s cannot be read", path);
    char *bytes = allocate((size_t)*size);
    if (fread(bytes, 1, (size_t)*size, in) != (size_t)*size)
        fail("%s cannot be read", path);
    fclose(in);
    return bytes;
}

static void read_file(const char *path, file_t *file)
{
    int64_t size;
    char *bytes = read_all(path, &size), name[64];
    uint64_t length = 0;
    for (int k = 7; k >= 0 && size >= 8; k--)
        length = length << 8 | (unsigned char)bytes[k];
    if (size < 8 || length > (uint64_t)size - 8)
        fail("%s is no safetensors file, or only the beginning of one", path);
    text_t text = {bytes + 8, bytes + 8 + length};
    expect(&text, '{');
    for (int k = 0; peek(&text) != '}'; k++) {
        if (k)
            expect(&text, ',');
        read_string(&text, name, sizeof name);
        expect(&text, ':');
        if (!strcmp(name, "__metadata__")) {
            read_metadata(&text);
            continue;
        }
        if (file->count == MOST_TENSORS)
            fail("the model has more than %d tensors", MOST_TENSORS);
        tensor_t *tensor = &file->tensors[file->count++];
        memcpy(tensor->name, name, sizeof name);
        read_tensor(&text, tensor, text.end, size - 8 - (int64_t)length);
    }
    expect(&text, '}');
    free(bytes);
}

/* NULL: there is none. */
static const tensor_t *find(const file_t *file, const char *kind, int layer)
{
    char name[64];
    snprintf(name, sizeof name, "%s_l%d", kind, layer);
    for (int k = 0; k < file->count; k++)
        if (!strcmp(file->tensors[k].name, name))
            return &file->tensors[k];
    return NULL;
}

/* ---- the LSTM ---------------------------------------------------------------------------------------- */

typedef struct {
    int L;
    fastrnn_spec specs[MOST_LAYERS];
    fastrnn_weights weights[MOST_LAYERS];
} lstm_t;

/* The data of a tensor that has to have this shape; columns is 0 for a vector. */
static void *data_of(const tensor_t *tensor, int64_t rows, int64_t columns)
{
    const int rank = columns ? 2 : 1;
    if (!tensor)
        return NULL;
    if (tensor->rank != rank || tensor->shape[0] != rows || (columns && tensor->shape[1] != columns))
        fail("%s has a shape that fits no LSTM", tensor->name);
    return tensor->data;
}

/* A spec says what a layer computes; the weights say where its numbers are. */
static int read_layer(const file_t *file, int k, fastrnn_spec *spec, fastrnn_weights *weights)
{
    const tensor_t *ih = find(file, "weight_ih", k), *hh = find(file, "weight_hh", k), *hr = find(file, "weight_hr", k);
    if (!ih)
        return 0;
    if (ih->rank != 2 || ih->shape[0] % 4 || !hh || hh->rank != 2)
        fail("layer %d is no LSTM", k);
    const int64_t G = ih->shape[0], I = ih->shape[1], H = G / 4, P = hh->shape[1];
    *weights = (fastrnn_weights){
        .size = sizeof *weights,
        .weight_ih = data_of(ih, G, I),
        .weight_hh = data_of(hh, G, hr ? P : H),
        .bias_ih = data_of(find(file, "bias_ih", k), G, 0),
        .bias_hh = data_of(find(file, "bias_hh", k), G, 0),
        .weight_hr = data_of(hr, P, H),
    };
    *spec = (fastrnn_spec){.size = sizeof *spec, .cell = "lstm", .dtype = FASTRNN_F32, .I = I, .H = H, .P = P};
    spec->options |= weights->bias_ih ? FASTRNN_BIAS_IH : 0;
    spec->options |= weights->bias_hh ? FASTRNN_BIAS_HH : 0;
    spec->options |= weights->weight_hr ? FASTRNN_PROJECTED : 0;
    return 1;
}

static void read_lstm(const char *path, lstm_t *lstm)
{
    static file_t file; /* the weights stay in it */
    read_file(path, &file);
    while (lstm->L < MOST_LAYERS && read_layer(&file, lstm->L, &lstm->specs[lstm->L], &lstm->weights[lstm->L]))
        lstm->L++;
    for (int k = 0; k < file.count; k++)
        if (strstr(file.tensors[k].name, "_reverse"))
            fail("%s is of a bidirectional LSTM: that cannot be run step by step", file.tensors[k].name);
    if (!lstm->L)
        fail("%s has no weight_ih_l0", path);
    for (int k = 1; k < lstm->L; k++)
        if (lstm->specs[k].H != lstm->specs[0].H || lstm->specs[k].P != lstm->specs[0].P)
            fail("layers 0 and %d have different sizes", k);
}

/* ---- frames ------------------------------------------------------------------------------------------ */

static FILE *open_stream(const char *path, const char *mode, FILE *standard)
{
    FILE *file = strcmp(path, "-") ? fopen(path, mode) : standard;
    if (!file)
        fail("%s cannot be opened", path);
    return file;
}

int main(int count, char **arguments)
{
    static lstm_t lstm;
    char error[256];
    if (count != 4)
        fail("usage: stream MODEL INPUT OUTPUT");
    read_lstm(arguments[1], &lstm);

    /* A stack is made once, from the specs of all layers: L layers in one direction. It checks them, and works out what
     * would otherwise be worked out at every step. */
    fastrnn_stack *stack;
    if (fastrnn_stack_new(lstm.specs, lstm.L, 1, &stack, error) != FASTRNN_OK)
        fail("%s", error);

    /* Panels are the weights in the order in which the kernels read them. Made once, they serve every step. */
    void *panels = allocate(fastrnn_panels_size(stack, FASTRNN_FORWARD));
    fastrnn_pack(stack, lstm.weights, FASTRNN_FORWARD, panels);

    /* A call allocates nothing: it gets a workspace, enough for one step of one row. */
    const size_t workspace_size = fastrnn_workspace_size(stack, 1, 1, 1, 1, FASTRNN_FORWARD);

    const int64_t I = lstm.specs[0].I, H = lstm.specs[0].H, P = lstm.specs[0].P;
    const size_t input_size = (size_t)I, output_size = (size_t)P;
    float *frame = allocate(input_size * sizeof *frame), *output = allocate(output_size * sizeof *output);
    float *h = allocate((size_t)(lstm.L * P) * sizeof *h); /* (L, B, P), zeros */
    float *c = allocate((size_t)(lstm.L * H) * sizeof *c); /* (L, B, H), zeros */

    /* One call, made ready once and run again for every frame. The final state may be written over the initial one,
     * which is how the state is carried from step to step. */
    const fastrnn_call step = {
        .size = sizeof step,
        .T = 1,
        .B = 1,
        .weights = lstm.weights,
        .panels = panels,
        .x = {frame, I, I},
        .y = {output, P, P},
        .state = {h, c},
        .final_state = {h, c},
        .workspace = allocate(workspace_size),
        .workspace_size = workspace_size,
    };
    if (fastrnn_check(stack, &step, FASTRNN_FORWARD, error) != FASTRNN_OK)
        fail("%s", error);

    FILE *in = open_stream(arguments[2], "rb", stdin), *out = open_stream(arguments[3], "wb", stdout);
    size_t frames = 0, samples;
    while ((samples = fread(frame, sizeof *frame, input_size, in)) == input_size) {
        if (fastrnn_forward(stack, &step) != FASTRNN_OK)
            fail("frame %zu was not finished", frames);
        if (fwrite(output, sizeof *output, output_size, out) != output_size || fflush(out))
            fail("%s cannot be written", arguments[3]);
        frames++;
    }
    if (ferror(in))
        fail("%s cannot be read", arguments[2]);
    fprintf(stderr, "%zu frames of %zu samples, %zu samples left; engine %s\n", frames, input_size, samples,
            fastrnn_engine());
    fastrnn_stack_free(stack);
    return 0;
}
