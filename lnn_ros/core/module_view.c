/* The rest of the module: Resampler, and what the tests ask for; module.c includes it. */

enum { FIRST, COUNT, FIRST_SHARE, INNER_SHARE, LAST_SHARE, SPAN_ARRAYS };

typedef struct {
    PyObject_HEAD
    lnn_view view;
    const lnn_kernels *kernels;
    Py_buffer kept[2 * SPAN_ARRAYS + 2];
    real *scratch;
    Py_ssize_t shape[3];
    size_t row;       /* bytes of a row that are read */
    int64_t rows_end; /* rows of the source that are needed */
} Resampler;

/* Keep array `index` of a tuple, which must have `count` numbers (any number if it is -1). */
static const void *keep(Resampler *self, int slot, PyObject *arrays, int index, const char *format,
                        int64_t count)
{
    PyObject *array = PyErr_Occurred() ? NULL : PyTuple_GetItem(arrays, index);
    if (!array)
        return NULL;
    Py_buffer *view = &self->kept[slot];
    if (!get(array, view, format, PyBUF_ND)) {
        PyErr_Format(PyExc_ValueError, "array %d has other numbers than it must", index);
        return NULL;
    }
    if (count >= 0 && view->len / view->itemsize != count)
        PyErr_Format(PyExc_ValueError, "array %d has another size than it must", index);
    return view->buf;
}

/* Returns one past the last source cell, or -1 with an exception. */
static int64_t read_spans(Resampler *self, int slot, PyObject *arrays, lnn_spans *spans)
{
    spans->first = keep(self, slot + FIRST, arrays, FIRST, "q", -1);
    spans->target = spans->first ? self->kept[slot].len / 8 : 0;
    spans->count = keep(self, slot + COUNT, arrays, COUNT, "q", spans->target);
    spans->first_share = keep(self, slot + FIRST_SHARE, arrays, FIRST_SHARE, REAL_FORMAT,
                              spans->target);
    spans->inner_share = keep(self, slot + INNER_SHARE, arrays, INNER_SHARE, REAL_FORMAT,
                              spans->target);
    spans->last_share = keep(self, slot + LAST_SHARE, arrays, LAST_SHARE, REAL_FORMAT,
                             spans->target);
    if (PyErr_Occurred())
        return -1;
    int64_t end = 0;
    for (int64_t i = 0; i < spans->target; i++) {
        if (spans->first[i] < 0 || spans->count[i] < 1 || spans->first[i] > INT32_MAX ||
            spans->count[i] > INT32_MAX) {
            PyErr_SetString(PyExc_ValueError, "a span is out of range");
            return -1;
        }
        const int64_t stop = spans->first[i] + spans->count[i];
        end = stop > end ? stop : end;
    }
    return end;
}

static PyObject *resampler_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    (void)keywords;
    PyObject *rows, *columns, *mix;
    int variant, channels, source_channels, source_width;
    if (!PyArg_ParseTuple(args, "iiiiO!O!O!", &variant, &channels, &source_channels, &source_width,
                          &PyTuple_Type, &rows, &PyTuple_Type, &columns, &PyTuple_Type, &mix))
        return NULL;
    if ((channels != 1 && channels != 3) || source_channels < 1 || source_channels > 4 ||
        source_width < 1 || source_width > 1 << 24)
        return PyErr_Format(PyExc_ValueError, "a size is out of range");
    const lnn_kernels *kernels = variant_at(variant);
    Resampler *self = kernels ? (Resampler *)type->tp_alloc(type, 0) : NULL;
    if (!self)
        return NULL;
    lnn_view *view = &self->view;
    view->channels = channels;
    view->source_channels = source_channels;
    view->source_width = source_width;
    self->kernels = kernels;
    self->rows_end = read_spans(self, 0, rows, &view->rows);
    const int64_t columns_end = read_spans(self, SPAN_ARRAYS, columns, &view->columns);
    view->mix = keep(self, 2 * SPAN_ARRAYS, mix, 0, REAL_FORMAT, 16);
    view->offset = keep(self, 2 * SPAN_ARRAYS + 1, mix, 1, REAL_FORMAT, 4);
    if (!PyErr_Occurred() && columns_end > source_width)
        PyErr_SetString(PyExc_ValueError, "the columns reach past the source's width");
    self->scratch = PyMem_Calloc(lnn_view_scratch(view), sizeof(real));
    if (!PyErr_Occurred() && !self->scratch)
        PyErr_NoMemory();
    if (PyErr_Occurred()) {
        Py_DECREF(self);
        return NULL;
    }
    self->shape[0] = channels;
    self->shape[1] = (Py_ssize_t)view->rows.target;
    self->shape[2] = (Py_ssize_t)view->columns.target;
    self->row = (size_t)source_width * (size_t)source_channels;
    return (PyObject *)self;
}

static void resampler_free(Resampler *self)
{
    for (int i = 0; i < 2 * SPAN_ARRAYS + 2; i++)
        if (self->kept[i].obj)
            PyBuffer_Release(&self->kept[i]);
    PyMem_Free(self->scratch);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *resampler_see(Resampler *self, PyObject *args)
{
    PyObject *image, *pixels;
    Py_ssize_t step;
    if (!PyArg_ParseTuple(args, "OnO", &image, &step, &pixels))
        return NULL;
    Py_buffer from, to;
    if (!get(image, &from, "B", PyBUF_ND))
        Py_RETURN_FALSE;
    /* as a division, which cannot overflow: the last row may end where its pixels end */
    const size_t length = (size_t)from.len, before = (size_t)self->rows_end - 1;
    int fits = step >= 0 && (size_t)step >= self->row && length >= self->row &&
               (before == 0 || (length - self->row) / before >= (size_t)step);
    if (fits && get_reals(pixels, &to, PyBUF_WRITABLE | PyBUF_ND, 3, self->shape)) {
        DO_AND_LET_GO_IF((double)self->rows_end * (double)self->row > LONG,
                         lnn_see(&self->view, self->kernels, from.buf, (size_t)step, self->scratch,
                                 to.buf));
        PyBuffer_Release(&to);
    } else {
        fits = 0;
    }
    PyBuffer_Release(&from);
    return PyBool_FromLong(fits);
}

static PyMethodDef resampler_methods[] = {
    {"see", (PyCFunction)resampler_see, METH_VARARGS, "False when refused."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject resampler_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "lnn_ros.core._core.Resampler",
    .tp_basicsize = sizeof(Resampler),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = resampler_new,
    .tp_dealloc = (destructor)resampler_free,
    .tp_methods = resampler_methods,
};

static PyObject *variants(PyObject *self, PyObject *nothing)
{
    (void)self, (void)nothing;
    PyObject *names = PyList_New(0);
    for (int i = 0; names && lnn_kernels_at(i); i++) {
        PyObject *name = PyUnicode_FromString(lnn_kernels_name(lnn_kernels_at(i)));
        if (!name || PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *elementwise(PyObject *self, PyObject *args)
{
    (void)self;
    int variant, function;
    PyObject *x;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "iiO", &variant, &function, &x))
        return NULL;
    const lnn_kernels *kernels = variant_at(variant);
    if (!kernels)
        return NULL;
    if (!get(x, &view, REAL_FORMAT, PyBUF_WRITABLE | PyBUF_ND))
        return PyErr_Format(PyExc_ValueError, "x has other numbers than it must");
    lnn_elementwise(kernels, function, view.len / (Py_ssize_t)sizeof(real), view.buf, view.buf);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"engine_size", engine_size, METH_VARARGS, "Bytes that an Engine takes; 0: impossible."},
    {"variants", variants, METH_NOARGS, "Names of the inner loops that this processor runs."},
    {"scan", scan, METH_VARARGS, "A cell over sequences of sub-steps, or back."},
    {"open_synapses", open_synapses, METH_VARARGS, "Conductances and currents, or back."},
    {"elementwise", elementwise, METH_VARARGS, "A function of core.h in place."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, MODULE_NAME, "The compiled core.", -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC MODULE_INIT(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module && (PyModule_AddType(module, &engine_type) < 0 ||
                   PyModule_AddType(module, &resampler_type) < 0 ||
                   PyModule_AddIntConstant(module, "real_bits", 8 * sizeof(real)) < 0))
        Py_CLEAR(module);
    return module;
}
