/* The Python module lnn_ros.core._core: Engine, Resampler and training scans over the C core.
 *
 * Written out instead of generated (cffi, ctypes) because short calls must keep the GIL: one that
 * takes a microsecond and lets go of it waits 5 ms or more to get it back whenever another thread
 * computes. Everything that C will read or write is checked here against the sizes it was laid out
 * for; of what does not fit the Python face says what is wrong: an engine asks it to, a resampler
 * answers with False.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "core.h"

#ifdef LNN_DOUBLE
#define REAL_FORMAT "d"
#define MODULE_NAME "_core_double"
#define MODULE_INIT PyInit__core_double
#else
#define REAL_FORMAT "f"
#define MODULE_NAME "_core"
#define MODULE_INIT PyInit__core
#endif

/* cell, convolutions, features, mapping, readout, middle and half */
enum { MOST_LAYERS = 16, MOST_ARRAYS = 19 + 2 * MOST_LAYERS + 2 + 4 * MOST_LAYERS + 2 };

/* Fill `view` with the contiguous numbers of `object`; 0 (and no exception) if it has others. */
static int get(PyObject *object, Py_buffer *view, const char *format, int flags)
{
    if (PyObject_GetBuffer(object, view, flags | PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        PyErr_Clear();
        return 0;
    }
    const char *found = view->format ? view->format : "B";
    const int is_int64 = !strcmp(format, "q") && !strcmp(found, "l") && view->itemsize == 8;
    if (!strcmp(found, format) || is_int64)
        return 1;
    PyBuffer_Release(view);
    return 0;
}

static int get_reals(PyObject *object, Py_buffer *view, int flags, int dimensions,
                     const Py_ssize_t *shape)
{
    if (!get(object, view, REAL_FORMAT, flags))
        return 0;
    int fits = view->ndim == dimensions;
    for (int i = 0; fits && i < dimensions; i++)
        fits = view->shape[i] == shape[i];
    if (!fits)
        PyBuffer_Release(view);
    return fits;
}

static const lnn_kernels *variant_at(int index)
{
    const lnn_kernels *kernels = index < 0 ? lnn_best_kernels() : NULL;
    for (int i = 0; index >= 0 && i <= index; i++) {
        kernels = lnn_kernels_at(i);
        if (!kernels)
            break;
    }
    if (!kernels)
        PyErr_Format(PyExc_ValueError, "this processor has no variant %d", index);
    return kernels;
}

/* A policy as Python describes it, while it is read. */
typedef struct {
    lnn_policy policy;
    lnn_convolution convolution[MOST_LAYERS];
    lnn_linear mapping[MOST_LAYERS], readout[MOST_LAYERS];
    Py_buffer views[MOST_ARRAYS];
    int viewed;
} description;

/* sizes: form, units, motors, unfolds, sensory and other synapses, imu, channels, height, width,
 * features, hold, convolutions, mappings, readouts, then each convolution's channels, kernel,
 * stride, padding, then the outputs of each layer of the mapping and of the readout */
static int read_sizes(description *d, PyObject *sizes, double max_step, double age_scale)
{
    memset(d, 0, sizeof *d);
    Py_buffer view;
    if (!get(sizes, &view, "q", PyBUF_ND)) {
        PyErr_SetString(PyExc_ValueError, "sizes must be an array of int64");
        return 0;
    }
    const int64_t *n = view.buf, count = view.len / 8;
    int good = count >= 15 && n[12] >= 0 && n[12] <= MOST_LAYERS && n[13] >= 0 &&
               n[13] <= MOST_LAYERS && n[14] >= 1 && n[14] <= MOST_LAYERS &&
               count == 15 + 4 * n[12] + n[13] + n[14] && n[0] >= 0 && n[0] < LNN_FORMS;
    if (good) {
        lnn_policy *policy = &d->policy;
        policy->form = (lnn_form)n[0];
        policy->units = n[1];
        policy->motors = n[2];
        policy->unfolds = n[3];
        policy->synaptic.sensory.count = n[4];
        policy->synaptic.synapses.count = n[5];
        policy->imu = n[6];
        policy->channels = n[7];
        policy->height = n[8];
        policy->width = n[9];
        policy->features.outputs = n[10];
        policy->hold = n[11];
        policy->convolutions = n[12];
        policy->mappings = n[13];
        policy->readouts = n[14];
        policy->convolution = d->convolution;
        policy->mapping = d->mapping;
        policy->readout = d->readout;
        policy->max_step = max_step;
        policy->age_scale = age_scale;
        n += 15;
        for (int i = 0; i < policy->convolutions; i++, n += 4) {
            lnn_convolution *layer = &d->convolution[i];
            layer->channels = n[0];
            layer->kernel = n[1];
            layer->stride = n[2];
            layer->padding = n[3];
        }
        for (int i = 0; i < policy->mappings; i++)
            d->mapping[i].outputs = *n++;
        for (int i = 0; i < policy->readouts; i++)
            d->readout[i].outputs = *n++;
    } else {
        PyErr_SetString(PyExc_ValueError, "sizes do not say a policy");
    }
    PyBuffer_Release(&view);
    return good;
}

/* Returns the numbers of the next array, which must be `count`; sets an exception when not. */
static const void *next_of(description *d, PyObject *arrays, const char *format, int64_t count)
{
    if (PyErr_Occurred())
        return NULL;
    PyObject *array = PyTuple_GetItem(arrays, d->viewed); /* IndexError past the last one */
    if (!array)
        return NULL;
    Py_buffer *view = &d->views[d->viewed];
    if (!get(array, view, format, PyBUF_ND)) {
        PyErr_Format(PyExc_ValueError, "array %d has other numbers than it must", d->viewed);
        return NULL;
    }
    d->viewed++;
    if (view->len / view->itemsize != count) {
        PyErr_Format(PyExc_ValueError, "array %d has another size than it must", d->viewed - 1);
        return NULL;
    }
    return view->buf;
}

static const real *next(description *d, PyObject *arrays, int64_t count)
{
    return next_of(d, arrays, REAL_FORMAT, count);
}

/* The same for indices, which must all be below `limit`. */
static const int64_t *next_indices(description *d, PyObject *arrays, int64_t count, int64_t limit)
{
    const int64_t *index = next_of(d, arrays, "q", count);
    for (int64_t i = 0; index && i < count; i++)
        if (index[i] < 0 || index[i] >= limit) {
            PyErr_Format(PyExc_ValueError, "array %d has an index out of range", d->viewed - 1);
            return NULL;
        }
    return index;
}

static void read_synapses(description *d, PyObject *arrays, lnn_synapses *synapses, int64_t sources)
{
    const int64_t count = synapses->count;
    synapses->source = next_indices(d, arrays, count, sources);
    synapses->target = next_indices(d, arrays, count, d->policy.units);
    synapses->w = next(d, arrays, count);
    synapses->sigma = next(d, arrays, count);
    synapses->mu = next(d, arrays, count);
    synapses->erev = next(d, arrays, count);
}

/* `seen`: inputs of the cell */
static void read_cell(description *d, PyObject *arrays, int64_t seen)
{
    lnn_policy *policy = &d->policy;
    const int64_t units = policy->units;
    if (policy->form == LNN_NEURAL) {
        lnn_neural_ltc *cell = &policy->neural;
        cell->gate_input = next(d, arrays, units * seen);
        cell->gate_recurrent = next(d, arrays, units * units);
        cell->gate_bias = next(d, arrays, units);
        cell->gain = next(d, arrays, units);
        cell->drive = next(d, arrays, units * seen);
        cell->reversal = next(d, arrays, units);
        cell->leak = next(d, arrays, units);
        cell->rate = next(d, arrays, units);
    } else if (policy->form == LNN_LIQUID) {
        lnn_liquid_cell *cell = &policy->liquid;
        cell->tau_weight = next(d, arrays, units * seen);
        cell->tau_bias = next(d, arrays, units);
        cell->hidden_weight = next(d, arrays, 2 * units * seen);
        cell->hidden_bias = next(d, arrays, 2 * units);
        cell->out_weight = next(d, arrays, units * 2 * units);
        cell->out_bias = next(d, arrays, units);
    } else {
        lnn_synaptic_ltc *cell = &policy->synaptic;
        read_synapses(d, arrays, &cell->sensory, seen);
        read_synapses(d, arrays, &cell->synapses, units);
        cell->gl = next(d, arrays, units);
        cell->vl = next(d, arrays, units);
        cell->cm = next(d, arrays, units);
        cell->input_w = next(d, arrays, seen);
        cell->input_b = next(d, arrays, seen);
        cell->output_w = next(d, arrays, policy->motors);
        cell->output_b = next(d, arrays, policy->motors);
    }
}

static int64_t read_layers(description *d, PyObject *arrays, lnn_linear *layer, int64_t count,
                           int64_t before)
{
    for (; count > 0; count--, layer++) {
        layer->weight = next(d, arrays, layer->outputs * before);
        layer->bias = next(d, arrays, layer->outputs);
        before = layer->outputs;
    }
    return before;
}

/* Only after lnn_engine_size has accepted the sizes: then no product here can overflow. */
static int read_arrays(description *d, PyObject *arrays)
{
    lnn_policy *policy = &d->policy;
    int64_t inputs = policy->imu, before = policy->channels;
    if (policy->channels) {
        int64_t height = policy->height, width = policy->width;
        for (int i = 0; i < policy->convolutions; i++) {
            lnn_convolution *c = &d->convolution[i];
            c->weight = next(d, arrays, c->channels * before * c->kernel * c->kernel);
            c->bias = next(d, arrays, c->channels);
            height = (height + 2 * c->padding - c->kernel) / c->stride + 1;
            width = (width + 2 * c->padding - c->kernel) / c->stride + 1;
            before = c->channels;
        }
        lnn_linear *features = &policy->features;
        features->weight = next(d, arrays, features->outputs * before * height * width);
        features->bias = next(d, arrays, features->outputs);
        inputs += features->outputs + 1;
    }
    read_cell(d, arrays, read_layers(d, arrays, d->mapping, policy->mappings, inputs));
    const int64_t outputs =
        read_layers(d, arrays, d->readout, policy->readouts, policy->motors + inputs);
    policy->middle = next(d, arrays, outputs);
    policy->half = next(d, arrays, outputs);
    return !PyErr_Occurred();
}

static void release(description *d)
{
    while (d->viewed)
        PyBuffer_Release(&d->views[--d->viewed]);
}

typedef struct {
    PyObject_HEAD
    Py_buffer memory; /* a numpy array's, so that views of it can outlive this */
    lnn_engine *engine;
    Py_ssize_t image[3], imu[1];
    PyObject *refuse;  /* (engine, method, what it was given): says what is wrong with that */
    PyObject *outputs; /* what command() returns, an array over the engine's outputs */
} Engine;

static PyObject *engine_size(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *sizes;
    double max_step, age_scale;
    description d;
    if (!PyArg_ParseTuple(args, "Odd", &sizes, &max_step, &age_scale) ||
        !read_sizes(&d, sizes, max_step, age_scale))
        return NULL;
    return PyLong_FromSize_t(lnn_engine_size(&d.policy));
}

static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    (void)keywords;
    PyObject *memory, *sizes, *arrays, *refuse;
    double max_step, age_scale;
    int variant;
    description d;
    if (!PyArg_ParseTuple(args, "OiOddO!O", &memory, &variant, &sizes, &max_step, &age_scale,
                          &PyTuple_Type, &arrays, &refuse) ||
        !read_sizes(&d, sizes, max_step, age_scale))
        return NULL;
    const lnn_kernels *kernels = variant_at(variant);
    Engine *engine = kernels ? (Engine *)type->tp_alloc(type, 0) : NULL;
    if (!engine)
        return NULL;
    const size_t size = lnn_engine_size(&d.policy);
    if (size == 0 || !get(memory, &engine->memory, "B", PyBUF_WRITABLE | PyBUF_ND) ||
        (size_t)engine->memory.len < size || (uintptr_t)engine->memory.buf % 64)
        PyErr_SetString(PyExc_ValueError, "the memory is too small, or for another policy");
    else if (read_arrays(&d, arrays)) {
        memset(engine->memory.buf, 0, size);
        engine->engine = lnn_engine_place(engine->memory.buf, &d.policy, kernels);
        if (!engine->engine)
            PyErr_SetString(PyExc_ValueError, "two synapses have the same source and target");
    }
    release(&d);
    if (PyErr_Occurred()) {
        Py_DECREF(engine);
        return NULL;
    }
    Py_INCREF(refuse);
    engine->refuse = refuse;
    engine->image[0] = (Py_ssize_t)d.policy.channels;
    engine->image[1] = (Py_ssize_t)d.policy.height;
    engine->image[2] = (Py_ssize_t)d.policy.width;
    engine->imu[0] = (Py_ssize_t)d.policy.imu;
    return (PyObject *)engine;
}

static void engine_free(Engine *self)
{
    if (self->memory.obj)
        PyBuffer_Release(&self->memory);
    Py_XDECREF(self->refuse);
    Py_XDECREF(self->outputs);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *engine_offsets(Engine *self, PyObject *nothing)
{
    (void)nothing;
    const char *start = self->memory.buf;
    return Py_BuildValue("nn", (Py_ssize_t)((char *)lnn_engine_state(self->engine) - start),
                         (Py_ssize_t)((char *)lnn_engine_outputs(self->engine) - start));
}

/* Operations, about a millisecond of them: what takes more lets go of the GIL, lest a watchdog in
 * another thread be held up. */
static const double LONG = 1e7;

#define DO_AND_LET_GO_IF(is_long, what)                                                            \
    do {                                                                                           \
        if (is_long) {                                                                             \
            Py_BEGIN_ALLOW_THREADS what;                                                           \
            Py_END_ALLOW_THREADS                                                                   \
        } else {                                                                                   \
            what;                                                                                  \
        }                                                                                          \
    } while (0)

static PyObject *answer(Engine *self, int is_done, const char *method, PyObject *given)
{
    if (is_done)
        Py_RETURN_NONE;
    return PyObject_CallFunction(self->refuse, "OsO", self, method, given);
}

static PyObject *engine_hold_image(Engine *self, PyObject *pixels)
{
    Py_buffer view;
    int held = 0;
    if (self->image[0] && get_reals(pixels, &view, PyBUF_ND, 3, self->image)) {
        DO_AND_LET_GO_IF(lnn_image_work(self->engine) > LONG,
                         held = lnn_hold_image(self->engine, view.buf));
        PyBuffer_Release(&view);
    }
    return answer(self, held, "hold_image", pixels);
}

static PyObject *engine_hold_imu(Engine *self, PyObject *values)
{
    Py_buffer view;
    int held = 0;
    if (self->imu[0] && get_reals(values, &view, PyBUF_ND, 1, self->imu)) {
        held = lnn_hold_imu(self->engine, view.buf);
        PyBuffer_Release(&view);
    }
    return answer(self, held, "hold_imu", values);
}

static PyObject *engine_hold_image_age(Engine *self, PyObject *seconds)
{
    const double age = PyFloat_AsDouble(seconds);
    if (age == -1.0 && PyErr_Occurred())
        return NULL;
    return answer(self, lnn_hold_age(self->engine, age), "hold_image_age", seconds);
}

static PyObject *engine_reset(Engine *self, PyObject *nothing)
{
    (void)nothing;
    lnn_reset(self->engine);
    Py_RETURN_NONE;
}

static PyObject *engine_jump(Engine *self, PyObject *nothing)
{
    (void)nothing;
    lnn_jump(self->engine);
    Py_RETURN_NONE;
}

static PyObject *engine_advance(Engine *self, PyObject *seconds)
{
    const double dt = PyFloat_AsDouble(seconds);
    if (dt == -1.0 && PyErr_Occurred())
        return NULL;
    int advanced;
    DO_AND_LET_GO_IF(lnn_advance_work(self->engine, dt) > LONG,
                     advanced = lnn_advance(self->engine, dt));
    return answer(self, advanced, "advance", seconds);
}

static PyObject *engine_command(Engine *self, PyObject *nothing)
{
    (void)nothing;
    lnn_command(self->engine);
    PyObject *outputs = self->outputs ? self->outputs : Py_None;
    Py_INCREF(outputs);
    return outputs;
}

static PyMemberDef engine_members[] = {
    {"outputs", T_OBJECT, offsetof(Engine, outputs), 0, "What command() returns."},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef engine_methods[] = {
    {"offsets", (PyCFunction)engine_offsets, METH_NOARGS, "Bytes to state and outputs."},
    {"hold_image", (PyCFunction)engine_hold_image, METH_O, "Encode and hold a frame."},
    {"hold_image_age", (PyCFunction)engine_hold_image_age, METH_O, "Hold the frame's age."},
    {"hold_imu", (PyCFunction)engine_hold_imu, METH_O, "Hold a sample."},
    {"reset", (PyCFunction)engine_reset, METH_NOARGS, "Zero the state."},
    {"jump", (PyCFunction)engine_jump, METH_NOARGS, "The next interval begins with what is held."},
    {"advance", (PyCFunction)engine_advance, METH_O, "Integrate over an interval."},
    {"command", (PyCFunction)engine_command, METH_NOARGS, "Fill and return the outputs."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject engine_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "lnn_ros.core._core.Engine",
    .tp_basicsize = sizeof(Engine),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = engine_new,
    .tp_dealloc = (destructor)engine_free,
    .tp_methods = engine_methods,
    .tp_members = engine_members,
};

#include "module_scan.c"
#include "module_view.c"
