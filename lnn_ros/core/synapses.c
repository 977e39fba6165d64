/* How synapses are laid out for the inner loops: by target for training, where samples stand side by
 * side; in groups of targets for a policy's step, which has one state. */
#include "kernels.h"

#include <string.h>

#include "elementary.h"

/* How far from 0 the sources of synapses may be, see kernels.h. */
static real reach_of(const lnn_synapses *synapses)
{
    real steepest = 1, farthest = 0;
    for (int64_t k = 0; k < synapses->count; k++) {
        const real steep = synapses->sigma[k] * (real)LNN_LOG2_E;
        const real size = steep < 0 ? -steep : steep;
        const real far = synapses->mu[k] < 0 ? -synapses->mu[k] : synapses->mu[k];
        steepest = size <= steepest ? steepest : size;
        farthest = far <= farthest ? farthest : far;
        if (!(size - size == 0 && far - far == 0))
            farthest = (real)1e30; /* not finite: then no source is near enough */
    }
    return (real)LNN_EXP2_MOST / steepest - farthest;
}

void lnn_wire(lnn_wired *wired, const lnn_synapses *synapses)
{
    int64_t *next = wired->begin + 1; /* one further on, it counts up to the begin of the next */
    memset(wired->begin, 0, sizeof *next * (size_t)(wired->targets + 2));
    for (int64_t k = 0; k < synapses->count; k++)
        wired->begin[synapses->target[k] + 2]++;
    for (int64_t i = 0; i < wired->targets; i++)
        wired->begin[i + 2] += wired->begin[i + 1];
    for (int64_t k = 0; k < synapses->count; k++) {
        const int64_t to = next[synapses->target[k]]++;
        wired->source[to] = synapses->source[k];
        wired->steep[to] = synapses->sigma[k] * (real)-LNN_LOG2_E;
        wired->sigma[to] = synapses->sigma[k];
        wired->mu[to] = synapses->mu[k];
        wired->w[to] = synapses->w[k];
        wired->current[to] = synapses->w[k] * synapses->erev[k];
    }
    wired->reach = reach_of(synapses);
}

int64_t lnn_most_slots(int64_t count, int64_t sources, int64_t groups)
{
    return count < sources * groups ? count : sources * groups;
}

int lnn_bundle_up(lnn_bundle *bundle, const lnn_synapses *synapses)
{
    const int64_t sources = bundle->sources, groups = bundle->groups;
    int64_t *slot = bundle->slot, *degree = bundle->degree, total = 0;
    memset(slot, 0, sizeof *slot * (size_t)(sources * groups));
    memset(degree, 0, sizeof *degree * (size_t)(groups * LNN_GROUP));
    for (int64_t k = 0; k < synapses->count; k++) {
        const int64_t target = synapses->target[k], lane = (int64_t)1 << target % LNN_GROUP;
        int64_t *lanes = slot + target / LNN_GROUP * sources + synapses->source[k];
        if (*lanes & lane)
            return 0;
        *lanes |= lane;
        degree[target]++;
    }
    for (int64_t g = 0; g < groups; g++) {
        int64_t shared = 0, own = 0;
        for (int64_t i = 0; i < LNN_GROUP; i++)
            own = degree[g * LNN_GROUP + i] > own ? degree[g * LNN_GROUP + i] : own;
        for (int64_t j = 0; j < sources; j++)
            if (slot[g * sources + j])
                slot[g * sources + j] = total + shared++;
        /* sources of its own cost a lane about half as much again */
        bundle->is_shared[g] = 2 * shared <= 3 * own;
        bundle->begin[g] = total;
        total += bundle->is_shared[g] ? shared : own;
    }
    bundle->begin[groups] = total;
    memset(bundle->source, 0, sizeof *bundle->source * (size_t)(total * LNN_GROUP));
    memset(degree, 0, sizeof *degree * (size_t)(groups * LNN_GROUP));
    for (int64_t k = 0; k < synapses->count; k++) {
        const int64_t source = synapses->source[k], target = synapses->target[k];
        const int64_t g = target / LNN_GROUP, lane = target % LNN_GROUP;
        const int64_t at = bundle->is_shared[g] ? slot[g * sources + source]
                                                : bundle->begin[g] + degree[target]++;
        for (int64_t i = 0; i < LNN_GROUP; i++)
            if (bundle->is_shared[g] || i == lane)
                bundle->source[at * LNN_GROUP + i] = (lnn_place)source;
        real *numbers = bundle->numbers + at * LNN_NUMBERS * LNN_GROUP + lane;
        numbers[LNN_MU * LNN_GROUP] = synapses->mu[k];
        numbers[LNN_STEEP * LNN_GROUP] = synapses->sigma[k] * (real)-LNN_LOG2_E;
        numbers[LNN_W * LNN_GROUP] = synapses->w[k];
        numbers[LNN_CURRENT * LNN_GROUP] = synapses->w[k] * synapses->erev[k];
    }
    bundle->reach = reach_of(synapses);
    return 1;
}
