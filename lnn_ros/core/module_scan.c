/* Sequences for training, in the Python module; module.c includes this file. Sizes and indices are
 * all checked here, then the GIL is let go of: these calls take milliseconds. */

typedef struct {
    Py_buffer views[32];
    int count;
} borrowed;

static void give_up(borrowed *b)
{
    while (b->count)
        PyBuffer_Release(&b->views[--b->count]);
}

/* Contiguous numbers of `object`, rows * columns of them (any whole rows if rows is -1: `rows` then
 * says how many); sets an exception that names them when they are not. */
static void *borrow(borrowed *b, PyObject *object, const char *format, int flags, int64_t *rows,
                    int64_t columns, const char *name)
{
    if (PyErr_Occurred() || !object)
        return NULL;
    Py_buffer *view = &b->views[b->count];
    if (!get(object, view, format, flags | PyBUF_ND)) {
        PyErr_Format(PyExc_ValueError, "%s has other numbers than it must", name);
        return NULL;
    }
    b->count++;
    const int64_t count = view->len / view->itemsize;
    if (columns < 1 || count % columns || (*rows >= 0 && count / columns != *rows)) {
        PyErr_Format(PyExc_ValueError, "%s has another size than it must", name);
        return NULL;
    }
    *rows = count / columns;
    return view->buf;
}

static real *borrow_reals(borrowed *b, PyObject *object, int flags, int64_t rows, int64_t columns,
                          const char *name)
{
    return borrow(b, object, REAL_FORMAT, flags, &rows, columns, name);
}

/* Indices, each from 0 to below `end`. */
static const int64_t *borrow_indices(borrowed *b, PyObject *object, int64_t *count, int64_t end,
                                     const char *name)
{
    const int64_t *index = borrow(b, object, "q", 0, count, 1, name);
    for (int64_t i = 0; index && i < *count; i++)
        if (index[i] < 0 || index[i] >= end) {
            PyErr_Format(PyExc_ValueError, "%s has an index out of range", name);
            return NULL;
        }
    return index;
}

/* wiring: (source, target); numbers, from `first` on: w, sigma, mu, erev */
static void borrow_synapses(borrowed *b, PyObject *wiring, PyObject *numbers, int first,
                            lnn_synapses *synapses)
{
    synapses->count = -1;
    PyObject *source = NULL, *target = NULL;
    if (PyErr_Occurred() || !PyArg_ParseTuple(wiring, "OO", &source, &target))
        return;
    synapses->source = borrow_indices(b, source, &synapses->count, synapses->sources, "source");
    synapses->target = borrow_indices(b, target, &synapses->count, synapses->targets, "target");
    const real **to[] = {&synapses->w, &synapses->sigma, &synapses->mu, &synapses->erev};
    for (int i = 0; i < 4 && !PyErr_Occurred(); i++)
        *to[i] = borrow_reals(b, PyTuple_GetItem(numbers, first + i), 0, synapses->count, 1,
                              "a synapse's number");
}

static void borrow_of_synapses(borrowed *b, PyObject *numbers, int first, int64_t count,
                               lnn_of_synapses *of)
{
    real **to[] = {&of->w, &of->sigma, &of->mu, &of->erev};
    for (int i = 0; i < 4 && !PyErr_Occurred(); i++)
        *to[i] = borrow_reals(b, PyTuple_GetItem(numbers, first + i), PyBUF_WRITABLE, count, 1,
                              "a synapse's gradient");
}

/* Run `call` without the GIL, in memory of its own; then let go of all. */
#define RUN(held, bytes, call)                                                                     \
    do {                                                                                           \
        const size_t size = PyErr_Occurred() ? 0 : (bytes);                                        \
        char *raw = size ? PyMem_RawMalloc(size + 64) : NULL;                                      \
        void *memory = raw ? raw + (64 - (uintptr_t)raw % 64) : NULL;                              \
        if (memory) {                                                                              \
            Py_BEGIN_ALLOW_THREADS /* clang-format off */                                          \
            call;                                                                                  \
            Py_END_ALLOW_THREADS   /* clang-format on */                                           \
        } else if (!PyErr_Occurred()) {                                                            \
            PyErr_NoMemory();                                                                      \
        }                                                                                          \
        PyMem_RawFree(raw);                                                                        \
        give_up(held);                                                                             \
    } while (0)

/* scan(variant, form, offset, interval or None, is_held, width, driven, start, states, wiring,
 * parameters), and with the gradients (ends; width, driven, start, parameters...) its backward pass.
 * wiring is () but for the synaptic forms; the parameters are, by the form: none; rate, weight, gain,
 * reversal; rate, w, sigma, mu, erev. */
static PyObject *scan(PyObject *self, PyObject *args)
{
    (void)self;
    int variant, form, is_held;
    PyObject *offset, *interval, *width, *driven, *start, *states, *wiring, *numbers, *gradients = NULL;
    if (!PyArg_ParseTuple(args, "iiOOpOOOOO!O!|O!", &variant, &form, &offset, &interval, &is_held,
                          &width, &driven, &start, &states, &PyTuple_Type, &wiring, &PyTuple_Type, &numbers,
                          &PyTuple_Type, &gradients))
        return NULL;
    const lnn_kernels *kernels = variant_at(variant);
    if (!kernels)
        return NULL;
    if (form < 0 || form >= LNN_FORMS)
        return PyErr_Format(PyExc_ValueError, "there is no form %d", form);
    borrowed b;
    b.count = 0;
    lnn_scan s;
    memset(&s, 0, sizeof s);
    s.form = form;
    int64_t count = -1;
    s.start = borrow(&b, start, REAL_FORMAT, 0, &count, 1, "start");
    if (s.start && b.views[0].ndim == 2 && count > 0) {
        s.batch = b.views[0].shape[0];
        s.units = b.views[0].shape[1];
    } else if (s.start) {
        PyErr_SetString(PyExc_ValueError, "start must be (batch, units), neither of them 0");
    }
    const int64_t units = s.units;
    int64_t steps = -1, bounds = s.batch + 1;
    s.rows = -1;
    s.width = borrow(&b, width, REAL_FORMAT, 0, &steps, 1, "width");
    s.offset = borrow(&b, offset, "q", 0, &bounds, 1, "offset");
    for (int64_t i = 0; s.offset && i <= s.batch; i++)
        if (s.offset[i] < (i ? s.offset[i - 1] : 0) || (i == 0 && s.offset[0] != 0) ||
            (i == s.batch && s.offset[i] != steps)) {
            PyErr_SetString(PyExc_ValueError, "offset must rise from 0 to the number of widths");
            break;
        }
    for (int64_t i = 0; !PyErr_Occurred() && i < steps; i++)
        if (!(s.width[i] >= 0 && s.width[i] - s.width[i] == 0)) { /* infinity - infinity is NaN */
            PyErr_SetString(PyExc_ValueError, "every width must be finite and not negative");
            break;
        }
    s.driven = borrow(&b, driven, REAL_FORMAT, 0, &s.rows, 2 * units, "driven");
    s.is_held = is_held;
    lnn_of_scan of;
    memset(&of, 0, sizeof of);
    /* which rows of the gradient an index of an interval may address; forward, that is nothing */
    int64_t intervals = interval == Py_None ? steps : is_held ? s.rows : -1;
    if (gradients && PyTuple_GET_SIZE(gradients))
        of.ends = borrow(&b, PyTuple_GET_ITEM(gradients, 0), REAL_FORMAT, 0, &intervals, units,
                         "the ends' gradient");
    if (interval != Py_None)
        s.interval = borrow_indices(&b, interval, &steps, intervals < 0 ? INT64_MAX : intervals,
                                    "interval");
    if (!PyErr_Occurred() && (interval == Py_None || !is_held) && s.rows != steps)
        PyErr_SetString(PyExc_ValueError, "driven must have a row for each width");
    s.states = borrow_reals(&b, states, gradients ? 0 : PyBUF_WRITABLE, steps, units, "states");
    PyObject **gradient = NULL;
    const Py_ssize_t parameters = form == LNN_LIQUID ? 0 : form == LNN_NEURAL ? 4 : 5;
    if (PyTuple_GET_SIZE(numbers) != parameters ||
        (gradients && PyTuple_GET_SIZE(gradients) != 4 + parameters)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "the form has another number of parameters");
    } else if (gradients) {
        const int w = PyBUF_WRITABLE;
        gradient = &PyTuple_GET_ITEM(gradients, 0);
        of.width = borrow_reals(&b, gradient[1], w, steps, 1, "the widths' gradient");
        of.driven = borrow_reals(&b, gradient[2], w, s.rows, 2 * units, "driven's gradient");
        of.start = borrow_reals(&b, gradient[3], w, s.batch, units, "start's gradient");
    }
    if (form != LNN_LIQUID && !PyErr_Occurred()) {
        s.rate = borrow_reals(&b, PyTuple_GET_ITEM(numbers, 0), 0, units, 1, "rate");
        if (gradient)
            of.rate = borrow_reals(&b, gradient[4], PyBUF_WRITABLE, units, 1, "rate's gradient");
    }
    if (form == LNN_NEURAL && !PyErr_Occurred()) {
        const real **to[] = {&s.weight, &s.gain, &s.reversal};
        real **back[] = {&of.weight, &of.gain, &of.reversal};
        for (int i = 0; i < 3; i++) {
            const int64_t rows = i ? 1 : units;
            *to[i] = borrow_reals(&b, PyTuple_GET_ITEM(numbers, 1 + i), 0, rows, units,
                                  "a parameter");
            if (gradient)
                *back[i] = borrow_reals(&b, gradient[5 + i], PyBUF_WRITABLE, rows, units,
                                        "a parameter's gradient");
        }
    } else if (form != LNN_LIQUID && !PyErr_Occurred()) {
        s.synapses.sources = s.synapses.targets = units;
        borrow_synapses(&b, wiring, numbers, 1, &s.synapses);
        if (gradient)
            borrow_of_synapses(&b, gradients, 5, s.synapses.count, &of.synapses);
    }
    if (gradients)
        RUN(&b, lnn_scan_memory(&s) + 1, lnn_scan_back(&s, &of, kernels, memory));
    else
        RUN(&b, lnn_scan_memory(&s) + 1, lnn_scan_forward(&s, kernels, memory));
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* open_synapses(variant, x, base, out, wiring, (w, sigma, mu, erev)), and with gradients (out; x,
 * base, w, sigma, mu, erev) its backward pass. x is (rows, sources), base (2 targets). */
static PyObject *open_synapses(PyObject *self, PyObject *args)
{
    (void)self;
    int variant;
    PyObject *x, *base, *out, *wiring, *numbers, *gradients = NULL;
    if (!PyArg_ParseTuple(args, "iOOOO!O!|O!", &variant, &x, &base, &out, &PyTuple_Type, &wiring,
                          &PyTuple_Type, &numbers, &PyTuple_Type, &gradients))
        return NULL;
    const lnn_kernels *kernels = variant_at(variant);
    if (!kernels)
        return NULL;
    borrowed b;
    b.count = 0;
    lnn_synapses synapses;
    memset(&synapses, 0, sizeof synapses);
    int64_t count = -1, rows = 0;
    const real *from = borrow(&b, x, REAL_FORMAT, 0, &count, 1, "x");
    if (from && b.views[0].ndim == 2 && count > 0) {
        rows = b.views[0].shape[0];
        synapses.sources = b.views[0].shape[1];
    } else if (from) {
        PyErr_SetString(PyExc_ValueError, "x must be (rows, sources), neither of them 0");
    }
    synapses.targets = -1;
    const real *start = borrow(&b, base, REAL_FORMAT, 0, &synapses.targets, 2, "base");
    const int64_t targets = synapses.targets;
    real *to = borrow_reals(&b, out, gradients ? 0 : PyBUF_WRITABLE, rows, 2 * targets, "out");
    if (!PyErr_Occurred() && PyTuple_GET_SIZE(numbers) != 4)
        PyErr_SetString(PyExc_ValueError, "synapses have four numbers each");
    borrow_synapses(&b, wiring, numbers, 0, &synapses);
    real *of_x = NULL, *of_base = NULL;
    const real *of_out = NULL;
    lnn_of_synapses of;
    memset(&of, 0, sizeof of);
    if (gradients && !PyErr_Occurred()) {
        const int w = PyBUF_WRITABLE;
        of_out = borrow_reals(&b, PyTuple_GetItem(gradients, 0), 0, rows, 2 * targets, "of_out");
        of_x = borrow_reals(&b, PyTuple_GetItem(gradients, 1), w, rows, synapses.sources, "of_x");
        of_base = borrow_reals(&b, PyTuple_GetItem(gradients, 2), w, 1, 2 * targets, "of_base");
        borrow_of_synapses(&b, gradients, 3, synapses.count, &of);
    }
    if (gradients)
        RUN(&b, lnn_synapses_memory(&synapses) + 1,
            lnn_open_back(&synapses, &of, kernels, rows, from, of_out, of_x, of_base, memory));
    else
        RUN(&b, lnn_synapses_memory(&synapses) + 1,
            lnn_open(&synapses, kernels, rows, from, start, to, memory));
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}
