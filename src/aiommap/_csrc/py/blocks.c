/* blocks.c: the type Blocks: reads that check words before and after, and one call that stores many
 * blocks.
 *
 * A reference keeps the words mapped. The descriptor of the data belongs to the caller, who keeps
 * it open while any method runs.
 */
#include "blocks.h"

#include <errno.h>
#include <structmember.h>

#include "inline.h"
#include "mapping.h"
#include "state.h"

#include "../sys/block_map.h"
#include "../sys/file_io.h"
#include "../sys/guard.h"

/* No inline read is longer than 1 MiB, nor a block shorter than 4 KiB. */
enum { MAX_INLINE_BLOCKS = 257 };

/* The kernel copies one and a half times as fast to memory that begins a cache line. */
#define CACHE_LINE_BYTES ((uintptr_t)64)

typedef struct {
    PyObject_HEAD
    struct block_map map;
    PyTypeObject *mapping_type; /* constant */
    unsigned long long hits;    /* GIL; settable */
} Blocks;

static PyObject *blocks_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    int map_fd, data_fd, error;
    long long size;
    unsigned int shift, owner;
    unsigned long long salt;
    if (!PyArg_ParseTuple(args, "iiLIIK:Blocks", &map_fd, &data_fd, &size, &shift, &owner, &salt))
        return NULL;
    if (size < 0 || shift < 12 || shift > 30 || owner >= BLOCK_OWNERS)
        return os_error(EINVAL);
    struct native_state *state = PyType_GetModuleState(type);
    if (guard_install())
        return os_error(errno);
    Blocks *self = (Blocks *)PyType_GenericAlloc(type, 0);
    if (!self) {
        guard_remove();
        return NULL;
    }
    self->mapping_type = (PyTypeObject *)Py_NewRef((PyObject *)state->mapping_type);
    self->map = (struct block_map){.size = size,
                                   .shift = shift,
                                   .count = (size + ((int64_t)1 << shift) - 1) >> shift,
                                   .salt = salt,
                                   .data_fd = data_fd,
                                   .owner = owner};
    Py_BEGIN_ALLOW_THREADS
    error = block_map_open(&self->map, map_fd);
    Py_END_ALLOW_THREADS
    if (error) {
        Py_DECREF(self);
        return os_error(error);
    }
    return (PyObject *)self;
}

static void blocks_dealloc(Blocks *self)
{
    block_map_close(&self->map);
    guard_remove();
    Py_XDECREF((PyObject *)self->mapping_type);
    object_free(self);
}

static PyObject *blocks_read_inline(Blocks *self, PyObject *const *args, Py_ssize_t count)
{
    uint32_t words[MAX_INLINE_BLOCKS];
    int64_t offset, length;
    if (count != 3 || Py_TYPE(args[0]) != self->mapping_type || !parse_integer(args[1], &offset) ||
        !parse_integer(args[2], &length) || !range_is_valid(offset, length, self->map.size))
        Py_RETURN_NONE;
    int64_t first = offset >> self->map.shift;
    int64_t end = length ? ((offset + length - 1) >> self->map.shift) + 1 : first;
    if (end - first > MAX_INLINE_BLOCKS || is_damaged(&self->map.damage) ||
        !block_map_begin_read(&self->map, first, end, words))
        Py_RETURN_NONE;
    PyObject *data = mapping_read_inline((Mapping *)args[0], args + 1, 2);
    if (!data || data == Py_None)
        return data;
    if (!block_map_end_read(&self->map, first, end, words)) {
        Py_DECREF(data);
        Py_RETURN_NONE;
    }
    self->hits++;
    return data;
}

/* Parse (first, end), blocks of the object; false with an exception. */
static bool parse_blocks(Blocks *self, PyObject *args, const char *format, long long *first,
                         long long *end)
{
    if (!PyArg_ParseTuple(args, format, first, end))
        return false;
    if (0 <= *first && *first <= *end && *end <= self->map.count)
        return true;
    PyErr_SetString(PyExc_IndexError, "blocks outside of the object");
    return false;
}

static PyObject *blocks_read(Blocks *self, PyObject *args)
{
    long long offset, length;
    size_t got;
    if (!PyArg_ParseTuple(args, "LL:read", &offset, &length))
        return NULL;
    if (!range_is_valid(offset, length, self->map.size))
        return os_error(EINVAL);
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!data)
        return NULL;
    /* SAFETY: nobody else knows the new object yet, so its bytes can be filled without the GIL. */
    char *to = PyBytes_AsString(data);
    Py_BEGIN_ALLOW_THREADS
    got = block_map_read(&self->map, offset, to, (size_t)length);
    Py_END_ALLOW_THREADS
    if (got == (size_t)length)
        return data;
    Py_DECREF(data);
    Py_RETURN_NONE;
}

static PyObject *blocks_states(Blocks *self, PyObject *args)
{
    long long first, end;
    if (!parse_blocks(self, args, "LL:states", &first, &end))
        return NULL;
    PyObject *states = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(end - first));
    if (!states)
        return NULL;
    char *to = PyBytes_AsString(states);
    for (long long block = first; block < end; block++)
        to[block - first] = (char)block_state(block_word(&self->map, block));
    return states;
}

/* Whether a block is PRESENT or SUSPECT: both have that bit. */
static const uint32_t has_bytes = BLOCK_STATE_MASK & 2;

/* A list of the runs (start, end) of blocks whose words have BLOCK_PRESENT under the mask, or that
 * have not. */
static PyObject *runs_that_are(Blocks *self, long long first, long long end, uint32_t mask,
                               bool present)
{
    PyObject *list = PyList_New(0);
    for (long long block = first; list && block < end;) {
        long long start = block;
        while (block < end &&
               ((block_word(&self->map, block) & mask) == BLOCK_PRESENT) == present)
            block++;
        if (block == start) {
            block++;
            continue;
        }
        PyObject *run = Py_BuildValue("LL", start, block);
        if (!run || PyList_Append(list, run))
            Py_CLEAR(list);
        Py_XDECREF(run);
    }
    return list;
}

static PyObject *blocks_missing(Blocks *self, PyObject *args)
{
    long long first, end;
    if (!parse_blocks(self, args, "LL:missing", &first, &end))
        return NULL;
    return runs_that_are(self, first, end, BLOCK_STATE_MASK, false);
}

static PyObject *blocks_present(Blocks *self, PyObject *args)
{
    long long first, end;
    if (!parse_blocks(self, args, "LL:present", &first, &end))
        return NULL;
    return runs_that_are(self, first, end, has_bytes, true);
}

static bool append_claim(PyObject *list, long long block, uint32_t word)
{
    PyObject *claim = list ? Py_BuildValue("LI", block, (unsigned int)word) : NULL;
    bool done = claim && !PyList_Append(list, claim);
    Py_XDECREF(claim);
    return done;
}

static PyObject *blocks_claim(Blocks *self, PyObject *args)
{
    long long first, end;
    if (!parse_blocks(self, args, "LL:claim", &first, &end))
        return NULL;
    PyObject *claims = PyList_New(0), *others = PyList_New(0);
    bool good = claims && others;
    for (long long block = first; good && block < end; block++) {
        uint32_t word = block_word(&self->map, block);
        bool claimed = block_state(word) == BLOCK_EMPTY &&
                       block_map_exchange(&self->map, block, BLOCK_BUSY, &word);
        if (claimed)
            good = append_claim(claims, block, word);
        else if (block_state(word) != BLOCK_PRESENT)
            good = append_claim(others, block, word);
    }
    PyObject *both = good ? PyTuple_Pack(2, claims, others) : NULL;
    Py_XDECREF(claims);
    Py_XDECREF(others);
    return both;
}

static PyObject *blocks_exchange(Blocks *self, PyObject *args)
{
    long long block;
    unsigned int expected, state;
    if (!PyArg_ParseTuple(args, "LII:exchange", &block, &expected, &state))
        return NULL;
    if (block < 0 || block >= self->map.count || state > BLOCK_SUSPECT)
        return os_error(EINVAL);
    uint32_t word = expected;
    if (!block_map_exchange(&self->map, block, (enum block_state)state, &word))
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLong(word);
}

static PyObject *blocks_word(Blocks *self, PyObject *args)
{
    long long block;
    if (!PyArg_ParseTuple(args, "L:word", &block))
        return NULL;
    if (block < 0 || block >= self->map.count)
        return os_error(EINVAL);
    return PyLong_FromUnsignedLong(block_word(&self->map, block));
}

/* Take a list of (block, word) apart; NULL with an exception. One piece of memory has both
 * arrays. */
static int64_t *take_claims(Blocks *self, PyObject *list, const Py_buffer *data, long long start,
                            uint32_t **words)
{
    size_t count = (size_t)PyList_Size(list);
    int64_t *blocks = PyMem_Calloc(count + 1, sizeof *blocks + sizeof **words);
    if (!blocks) {
        PyErr_NoMemory();
        return NULL;
    }
    *words = (uint32_t *)(blocks + count);
    for (size_t i = 0; i < count; i++) {
        long long block;
        unsigned int word;
        PyObject *claim = PyList_GetItem(list, (Py_ssize_t)i); /* borrowed */
        bool good = claim && PyArg_ParseTuple(claim, "LI", &block, &word);
        if (good && (block < 0 || block >= self->map.count ||
                     block_offset(&self->map, block) < start ||
                     block_offset(&self->map, block) + (int64_t)block_length(&self->map, block) >
                         start + (int64_t)data->len)) {
            os_error(EINVAL);
            good = false;
        }
        if (!good) {
            PyMem_Free(blocks);
            return NULL;
        }
        blocks[i] = block;
        (*words)[i] = word;
    }
    return blocks;
}

static PyObject *blocks_store(Blocks *self, PyObject *args)
{
    PyObject *list;
    Py_buffer data;
    long long start;
    int error = 0;
    size_t published = 0;
    uint32_t *words;
    if (!PyArg_ParseTuple(args, "O!y*L:store", &PyList_Type, &list, &data, &start))
        return NULL;
    size_t count = (size_t)PyList_Size(list);
    int64_t *blocks = take_claims(self, list, &data, start, &words);
    if (blocks) {
        /* SAFETY: each block lies in the buffer, which is exported to us. */
        Py_BEGIN_ALLOW_THREADS
        published = block_map_store(&self->map, blocks, words, count, data.buf, start, &error);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    if (!blocks)
        return NULL;
    PyMem_Free(blocks);
    return Py_BuildValue("Ki", (unsigned long long)published, error);
}

static PyObject *blocks_verify(Blocks *self, PyObject *args)
{
    long long first, end;
    struct block_counts found = {0};
    if (!parse_blocks(self, args, "LL:verify", &first, &end))
        return NULL;
    char *memory = PyMem_Malloc(((size_t)1 << self->map.shift) + CACHE_LINE_BYTES);
    if (!memory)
        return PyErr_NoMemory();
    char *room = memory + (-(uintptr_t)memory & (CACHE_LINE_BYTES - 1));
    Py_BEGIN_ALLOW_THREADS
    found = block_map_verify(&self->map, first, end, room);
    Py_END_ALLOW_THREADS
    PyMem_Free(memory);
    return Py_BuildValue("LLL", (long long)found.good, (long long)found.bad, (long long)found.bytes);
}

/* Whether any word has these bits under the mask. */
static PyObject *has_word(Blocks *self, uint32_t mask, uint32_t bits)
{
    bool found = false;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t block = 0; !found && block < self->map.count; block++)
        found = (block_word(&self->map, block) & mask) == bits;
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(found);
}

static PyObject *blocks_referenced(Blocks *self, PyObject *Py_UNUSED(unused))
{
    return has_word(self, BLOCK_REFERENCED, BLOCK_REFERENCED);
}

static PyObject *blocks_any_present(Blocks *self, PyObject *Py_UNUSED(unused))
{
    return has_word(self, has_bytes, BLOCK_PRESENT);
}

static PyObject *blocks_distrust(Blocks *self, PyObject *Py_UNUSED(unused))
{
    Py_BEGIN_ALLOW_THREADS
    block_map_distrust(&self->map);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *blocks_sweep(Blocks *self, PyObject *args)
{
    long long first, end, most;
    int force;
    if (!PyArg_ParseTuple(args, "LLLp:sweep", &first, &end, &most, &force))
        return NULL;
    if (first < 0 || first > end || end > self->map.count)
        return os_error(EINVAL);
    PyObject *claims = PyList_New(0);
    long long block = first;
    for (; claims && block < end && PyList_Size(claims) < most; block++) {
        uint32_t word;
        if (block_map_sweep(&self->map, block, force, &word) && !append_claim(claims, block, word))
            Py_CLEAR(claims);
    }
    return claims ? Py_BuildValue("NL", claims, block) : NULL;
}

static PyObject *blocks_wait(Blocks *self, PyObject *args)
{
    long long block;
    unsigned int word;
    double seconds;
    if (!PyArg_ParseTuple(args, "LId:wait", &block, &word, &seconds))
        return NULL;
    if (block < 0 || block >= self->map.count || !(seconds >= 0 && seconds < 1e6))
        return os_error(EINVAL);
    Py_BEGIN_ALLOW_THREADS
    block_map_wait(&self->map, block, word, (int64_t)(seconds * 1e9));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *blocks_get_damaged(Blocks *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(is_damaged(&self->map.damage));
}

static PyObject *blocks_get_count(Blocks *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(self->map.count);
}

static PyGetSetDef blocks_getset[] = {
    {"damaged", (getter)blocks_get_damaged, NULL, NULL, NULL},
    {"count", (getter)blocks_get_count, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef blocks_members[] = {
    {"hits", T_ULONGLONG, offsetof(Blocks, hits), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef blocks_methods[] = { /* documented in _native_blocks.pyi */
    {"read_inline", (PyCFunction)(void (*)(void))blocks_read_inline, METH_FASTCALL, NULL},
    {"read", (PyCFunction)blocks_read, METH_VARARGS, NULL},
    {"states", (PyCFunction)blocks_states, METH_VARARGS, NULL},
    {"missing", (PyCFunction)blocks_missing, METH_VARARGS, NULL},
    {"present", (PyCFunction)blocks_present, METH_VARARGS, NULL},
    {"claim", (PyCFunction)blocks_claim, METH_VARARGS, NULL},
    {"exchange", (PyCFunction)blocks_exchange, METH_VARARGS, NULL},
    {"word", (PyCFunction)blocks_word, METH_VARARGS, NULL},
    {"store", (PyCFunction)blocks_store, METH_VARARGS, NULL},
    {"verify", (PyCFunction)blocks_verify, METH_VARARGS, NULL},
    {"distrust", (PyCFunction)blocks_distrust, METH_NOARGS, NULL},
    {"referenced", (PyCFunction)blocks_referenced, METH_NOARGS, NULL},
    {"any_present", (PyCFunction)blocks_any_present, METH_NOARGS, NULL},
    {"sweep", (PyCFunction)blocks_sweep, METH_VARARGS, NULL},
    {"wait", (PyCFunction)blocks_wait, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot blocks_slots[] = {
    {Py_tp_new, blocks_new},
    {Py_tp_dealloc, blocks_dealloc},
    {Py_tp_methods, blocks_methods},
    {Py_tp_members, blocks_members},
    {Py_tp_getset, blocks_getset},
    {0, NULL},
};

PyType_Spec blocks_spec = {
    .name = "aiommap._native.Blocks",
    .basicsize = sizeof(Blocks),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = blocks_slots,
};

static PyObject *punch_hole(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd, error;
    long long offset, length;
    if (!PyArg_ParseTuple(args, "iLL:punch_hole", &fd, &offset, &length))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = file_punch_hole(fd, offset, length);
    Py_END_ALLOW_THREADS
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

PyMethodDef block_functions[] = { /* documented in _native_blocks.pyi */
    {"punch_hole", punch_hole, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
