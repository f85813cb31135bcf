/* Objectives: presets, axes, checks of combinations, and the computation of advantages and weights
   from rewards. The losses are in surrogates.c, all formulas in doc/objectives.md. */
#include "objectives.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define OVERLONG_SHARE 0.2     /* the soft penalty applies to lengths in the last fifth of
                                  max_tokens */

/* ---- presets and axes ----------------------------------------------------------------------- */

/* One row per preset. Columns: name, advantage rule, ratio, surrogate, clip_low, clip_high,
   aggregation, entropy control, group filter, overlong rule. The same in every row of ROW: no dual
   clip, std_epsilon 1e-4 (TRL's), KL estimator k3 with coefficient 0. */
#define ROW(name_, advantage_, ratio_, surrogate_, low_, high_, aggregation_, control_, filter_, \
            overlong_)                                                                           \
    {.name = name_, .advantage = ADVANTAGE_##advantage_, .std_epsilon = 1e-4,                    \
     .ratio = RATIO_##ratio_, .surrogate = SURROGATE_##surrogate_, .clip_low = low_,             \
     .clip_high = high_,                                                                         \
     .aggregation = AGGREGATE_##aggregation_, .control = CONTROL_##control_, .filter = filter_,  \
     .overlong = OVERLONG_##overlong_, .kl = KL_K3}

static const struct Objective presets[] = {
    /*  name         advant. ratio     surrogate  low     high   aggregation    control filt long */
    ROW("reinforce", NONE,   NONE,     REINFORCE, 0,      0,     TOKEN_MEAN,    NONE,   0,   NONE),
    ROW("rloo",      LOO,    NONE,     REINFORCE, 0,      0,     TOKEN_MEAN,    NONE,   0,   NONE),
    ROW("loop",      LOO,    TOKEN,    CLIP,      .0909f, .1f,   SEQUENCE_MEAN, NONE,   0,   NONE),
    ROW("grpo",      ZSCORE, TOKEN,    CLIP,      .2f,    .2f,   SEQUENCE_MEAN, NONE,   0,   NONE),
    ROW("dr_grpo",   MEAN,   TOKEN,    CLIP,      .2f,    .2f,   CONSTANT,      NONE,   0,   NONE),
    ROW("dapo",      ZSCORE, TOKEN,    CLIP,      .2f,    .28f,  TOKEN_MEAN,    NONE,   1,   SOFT),
    ROW("gspo",      ZSCORE, SEQUENCE, CLIP,      3e-4f,  4e-4f, SEQUENCE_MEAN, NONE,   0,   NONE),
    ROW("cispo",     ZSCORE, TOKEN,    CISPO,     1,      4,     TOKEN_MEAN,    NONE,   0,   NONE),
    ROW("repo",      LOO,    TOKEN,    CLIP,      .2f,    .28f,  TOKEN_MEAN,    REPO_R, 0,   NONE),
    ROW("repo_r",    LOO,    TOKEN,    CLIP,      .2f,    .28f,  TOKEN_MEAN,    REPO_R, 0,   NONE),
    ROW("repo_d",    LOO,    TOKEN,    CLIP,      .2f,    .28f,  TOKEN_MEAN,    REPO_D, 0,   NONE),
    ROW("adapo",     LOO,    TOKEN,    CLIP,      .2f,    .28f,  TOKEN_MEAN,    ADAPO,  0,   NONE),
    {.name = "verl_grpo", .advantage = ADVANTAGE_ZSCORE, .std_epsilon = 1e-6, .ratio = RATIO_TOKEN,
     .surrogate = SURROGATE_CLIP, .clip_low = .2f, .clip_high = .2f, .dual_clip = 3,
     .aggregation = AGGREGATE_TOKEN_MEAN, .kl = KL_K3},
    ROW("ce",        NONE,   NONE,     CE,        0,      0,     TOKEN_MEAN,    NONE,   0,   NONE),
};
enum { NUM_PRESETS = sizeof presets / sizeof *presets };

/* Names of the values of each axis. A list's index is the value's enum, and its last name is NULL.
   The lists of surrogates and entropy controls are the tables surrogates[] and entropy_controls[],
   whose rows begin with the name. */
static const char *const advantages[] = {
    [ADVANTAGE_NONE] = "none", [ADVANTAGE_MEAN] = "mean", [ADVANTAGE_ZSCORE] = "zscore",
    [ADVANTAGE_LOO] = "loo", NULL};
static const char *const ratios[] = {
    [RATIO_NONE] = "none", [RATIO_TOKEN] = "token", [RATIO_SEQUENCE] = "sequence", NULL};
static const char *const aggregations[] = {
    [AGGREGATE_TOKEN_MEAN] = "token_mean", [AGGREGATE_SEQUENCE_MEAN] = "sequence_mean",
    [AGGREGATE_CONSTANT] = "constant", NULL};
static const char *const estimators[] = {[KL_K1] = "k1", [KL_K2] = "k2", [KL_K3] = "k3", NULL};
static const char *const overlongs[] = {
    [OVERLONG_NONE] = "none", [OVERLONG_MASK] = "mask", [OVERLONG_SOFT] = "soft", NULL};

static const struct Axis {
    const char *name;
    size_t member;              /* offsetof the axis' enum in struct Objective */
    const void *values;         /* rows that begin with a const char *: the name */
    size_t row_size;            /* bytes of a row */
} axes[] = {
#define AXIS(name, member, values) \
    {name, offsetof(struct Objective, member), values, sizeof (values)[0]}
    AXIS("advantage", advantage, advantages),
    AXIS("ratio", ratio, ratios),
    AXIS("surrogate", surrogate, surrogates),
    AXIS("aggregation", aggregation, aggregations),
    AXIS("entropy-control", control, entropy_controls),
    AXIS("kl", kl, estimators),
    AXIS("overlong", overlong, overlongs),
};
enum { NUM_AXES = sizeof axes / sizeof *axes };

const struct Objective *objective_row(int i) {
    return i >= 0 && i < NUM_PRESETS ? &presets[i] : NULL;
}

const struct Objective *objective_find(const char *name) {
    for (int i = 0; i < NUM_PRESETS; i++)
        if (strcmp(presets[i].name, name) == 0) return &presets[i];
    return NULL;
}

const char *objective_names(void) {
    static char names[32 * NUM_PRESETS];
    int length = 0;
    for (int i = 0; i < NUM_PRESETS; i++)
        length += snprintf(names + length, sizeof names - (size_t)length, "%s%s",
                           i > 0 ? " " : "", presets[i].name);
    return names;
}

static const struct Axis *axis_find(const char *name) {
    for (int i = 0; i < NUM_AXES; i++)
        if (strcmp(axes[i].name, name) == 0) return &axes[i];
    return NULL;
}

/* The name of a value; NULL for the number after the last one. */
static const char *value_name(const struct Axis *axis, int value) {
    return *(const char *const *)((const char *)axis->values + (size_t)value * axis->row_size);
}

static int *chosen_value(struct Objective *objective, const struct Axis *axis) {
    return (int *)((char *)objective + axis->member);
}

const char *objective_axis_names(const char *name) {
    static char names[NUM_AXES][256];
    const struct Axis *axis = axis_find(name);
    if (!axis) return NULL;
    char *out = names[axis - axes];
    int length = 0;
    for (int i = 0; value_name(axis, i); i++)
        length += snprintf(out + length, sizeof names[0] - (size_t)length, "%s%s",
                           i > 0 ? " " : "", value_name(axis, i));
    return out;
}

int objective_axis_value(const char *name, const char *word) {
    const struct Axis *axis = axis_find(name);
    for (int i = 0; axis && value_name(axis, i); i++)
        if (strcmp(value_name(axis, i), word) == 0) return i;
    return -1;
}

const char *objective_axis_word(const char *axis, int value) {
    return value_name(axis_find(axis), value);
}

bool objective_choose(struct Objective *objective, const char *axis, const char *name) {
    int value = objective_axis_value(axis, name);
    if (value < 0) return false;
    *chosen_value(objective, axis_find(axis)) = value;
    return true;
}

/* Is `word` one of the space-separated `words`? */
static bool has_word(const char *words, const char *word) {
    size_t length = strlen(word);
    for (const char *w = words; w && *w; w += strcspn(w, " "), w += *w == ' ')
        if (strcspn(w, " ") == length && strncmp(w, word, length) == 0) return true;
    return false;
}

static bool control_reads(const struct Control *row, const char *option) {
    const char *const range[] = {row->option.start, row->option.min, row->option.max,
                                 row->option.step};
    for (int i = 0; i < 4; i++)
        if (range[i] && strcmp(range[i], option) == 0) return true;
    return has_word(row->reads, option);
}

bool objective_ignores(const struct Objective *objective, const char *option) {
    if (strcmp(option, "kl") == 0) return objective->kl_coef == 0;
    if (strcmp(option, "filter-rounds") == 0) return !objective->filter;
    if (strcmp(option, "overlong") == 0)   /* the soft penalty changes rewards, which ce ignores */
        return objective->overlong == OVERLONG_SOFT &&
               !surrogates[objective->surrogate].has_advantage;
    const struct Control *control = &entropy_controls[objective->control];
    if (control_reads(control, option) || has_word(surrogates[objective->surrogate].reads, option))
        return false;
    if (strcmp(option, "logp-dtype") == 0 && control->selects == SELECT_PENALISED) return false;
    for (const struct SurrogateRow *row = surrogates; row->name; row++)
        if (has_word(row->reads, option)) return true;
    for (const struct Control *row = entropy_controls; row->name; row++)
        if (control_reads(row, option)) return true;
    return false;
}

enum Scope objective_scope(const struct Objective *objective) {
    const struct SurrogateRow *surrogate = &surrogates[objective->surrogate];
    if (!surrogate->has_advantage) return SCOPE_TOKEN;
    if (entropy_controls[objective->control].selects != SELECT_NOTHING) return SCOPE_BATCH;
    return surrogate->has_ratio && objective->ratio == RATIO_SEQUENCE ? SCOPE_SEQUENCE
                                                                      : SCOPE_TOKEN;
}

void objective_describe(const struct Objective *objective, char *out, int capacity) {
    const struct Objective *o = objective;
    const struct SurrogateRow *surrogate = &surrogates[o->surrogate];
    char range[96] = "", dual[48] = "", reference[64] = "";
    if (surrogate->has_ratio)
        snprintf(range, sizeof range, " %g..%g of the %s ratio", 1 - o->clip_low, 1 + o->clip_high,
                 ratios[o->ratio]);
    if (surrogate->silences && o->dual_clip != 0)
        snprintf(dual, sizeof dual, ", dual clip %g", o->dual_clip);
    if (o->kl_coef != 0)
        snprintf(reference, sizeof reference, ", KL %s times %g", estimators[o->kl], o->kl_coef);
    snprintf(out, (size_t)capacity,
             "%s: advantage %s, %s%s%s, %s, entropy control %s, group filter %s, overlong %s%s",
             o->name, advantages[o->advantage], surrogate->name, range, dual,
             aggregations[o->aggregation], entropy_controls[o->control].name,
             o->filter ? "on" : "off", overlongs[o->overlong], reference);
}

const char *objective_check_group(const struct Objective *objective, int group_size) {
    bool compares = surrogates[objective->surrogate].has_advantage &&
                    objective->advantage != ADVANTAGE_NONE;
    if (!compares || group_size >= 2) return NULL;
    return "this advantage compares the completions of one prompt, so --group must be at least 2 "
           "(only --advantage none takes 1)";
}

/* One sentence saying what is wrong with the clip range and the dual clip, or NULL. */
static const char *check_clip(const struct Objective *objective) {
    const struct SurrogateRow *surrogate = &surrogates[objective->surrogate];
    if (surrogate->has_ratio && objective->ratio == RATIO_NONE)
        return "this surrogate clips a ratio; use --ratio token or sequence";
    if (surrogate->silences && (objective->clip_low <= 0 || objective->clip_high <= 0))
        return "a clip range that ends at ratio 1 silences half of the tokens by rounding alone; "
               "set --clip-low and --clip-high above 0";
    if (surrogate->has_ratio && objective->clip_low <= 0 && objective->clip_high <= 0)
        return "a clip range without width makes every ratio 1; set --clip-low or --clip-high, or "
               "use --surrogate reinforce";
    if (objective->dual_clip != 0 && objective->dual_clip <= 1)
        return "--dual-clip bounds ratios above 1: at 1 or below it silences every token that "
               "should become rarer; set it above 1 (3 is usual), or 0 for none";
    return NULL;
}

const char *objective_check_axes(const struct Objective *objective) {
    const struct SurrogateRow *surrogate = &surrogates[objective->surrogate];
    const struct Control *control = &entropy_controls[objective->control];
    if (!surrogate->has_advantage && (control->advantage || control->selects != SELECT_NOTHING))
        return "cross-entropy has no advantage for this entropy control to act on";
    if (control->moves_clip_high && !surrogate->has_ratio)
        return "entropy control adapo moves the upper clip bound, and this surrogate has none";
    if (!surrogate->has_advantage && objective->kl_coef > 0)
        return "cross-entropy has no KL term; set --kl-coef 0";
    if (control->selects == SELECT_PENALISED && surrogate->has_ratio &&
        objective->ratio == RATIO_SEQUENCE)
        return "kl_cov penalises single tokens' ratios; use --ratio token";
    const char *problem = check_clip(objective);
    if (problem) return problem;
    if (objective->filter && objective->advantage == ADVANTAGE_NONE)
        return "the group filter drops groups of equal rewards, which without a group baseline "
               "still carry signal; use --group-filter off";
    return NULL;
}

const char *objective_check_updates(const struct Objective *objective, int updates_per_rollout) {
    const struct SurrogateRow *surrogate = &surrogates[objective->surrogate];
    bool penalises = entropy_controls[objective->control].selects == SELECT_PENALISED;
    if (!surrogate->has_advantage)
        return "cross-entropy learns from every completion alike, right or wrong: rewards are "
               "measured and not learnt from";
    if (updates_per_rollout > 1 && !surrogate->has_ratio)
        return "this surrogate has no ratio: from the second update of a rollout on it learns from "
               "samples of an older policy as if they were its own; use --minibatches 1 --epochs "
               "1, or --surrogate clip --ratio token with a clip range";
    if (updates_per_rollout > 1 || !(surrogate->has_ratio || penalises)) return NULL;
    return "with one update per rollout every ratio is 1 when its gradient is taken: the clip "
           "range (and adapo, which moves it) and kl_cov are inert; use --minibatches or --epochs";
}

/* ---- rewards to advantages ------------------------------------------------------------------ */

int objective_filter_groups(const struct RewardBatch *batch, unsigned char *keep) {
    int groups = batch->count / batch->group_size, kept = 0;
    for (int g = 0; g < groups; g++) {
        const float *reward = batch->reward + (size_t)g * batch->group_size;
        int first = -1;
        keep[g] = 0;
        for (int i = 0; i < batch->group_size; i++) {
            if (!isfinite(reward[i])) continue;
            if (first < 0) first = i;
            if (reward[i] != reward[first]) keep[g] = 1;
        }
        kept += keep[g];
    }
    return kept;
}

/* 0 up to the length max_tokens - c, then falling linearly to -1 at max_tokens, where c is a fifth
   of max_tokens (DAPO 2503.14476, eq. 13). */
static double overlong_penalty(int length, int max_tokens) {
    double window = OVERLONG_SHARE * max_tokens;
    double excess = length - (max_tokens - window);
    if (excess <= 0 || window <= 0) return 0;
    return -fmin(excess / window, 1);
}

/* The reward with the soft overlong penalty, from which the advantage is computed; NaN where the
   completion is unscored. */
static double final_reward(const struct Objective *objective, const struct RewardBatch *batch,
                           int i) {
    if (!isfinite(batch->reward[i])) return NAN;
    double penalty = objective->overlong == OVERLONG_SOFT
                         ? overlong_penalty(batch->length[i], batch->max_tokens) : 0;
    return batch->reward[i] + penalty;
}

struct GroupStats { int scored; bool equal; double mean, std; };

static struct GroupStats group_measure(const struct Objective *objective,
                                       const struct RewardBatch *batch, int first) {
    struct GroupStats group = {.equal = true};
    double reference = NAN, sum = 0, squares = 0;
    for (int i = first; i < first + batch->group_size; i++) {
        double reward = final_reward(objective, batch, i);
        if (isnan(reward)) continue;
        if (group.scored++ == 0) reference = reward;
        if (reward != reference) group.equal = false;
        sum += reward;
    }
    group.mean = sum / fmax(group.scored, 1);
    for (int i = first; i < first + batch->group_size; i++) {
        double reward = final_reward(objective, batch, i);
        if (!isnan(reward)) squares += (reward - group.mean) * (reward - group.mean);
    }
    group.std = sqrt(squares / fmax(group.scored - 1, 1));
    return group;
}

/* In a group of equal rewards the advantage is exactly 0. Subtracting the mean would not always
   give that: the rounded mean of three times 0.1 is not 0.1. */
static double advantage_of(const struct Objective *objective, double reward,
                           const struct GroupStats *group) {
    double n = group->scored, centred = group->equal ? 0 : reward - group->mean;
    switch (objective->advantage) {
    case ADVANTAGE_NONE: return reward;
    case ADVANTAGE_MEAN: return centred;
    case ADVANTAGE_ZSCORE: return centred / (group->std + objective->std_epsilon);
    case ADVANTAGE_LOO: return n / (n - 1) * centred;   /* = reward - mean of the others */
    }
    return 0;
}

void objective_advantages(const struct Objective *objective, const struct RewardBatch *batch,
                          float *advantage, unsigned char *active) {
    int enough = objective->advantage == ADVANTAGE_NONE ? 1 : 2;
    for (int first = 0; first + batch->group_size <= batch->count; first += batch->group_size) {
        struct GroupStats group = group_measure(objective, batch, first);
        for (int i = first; i < first + batch->group_size; i++) {
            double reward = final_reward(objective, batch, i);
            bool scored = !isnan(reward) && group.scored >= enough;
            bool masked = objective->overlong == OVERLONG_MASK && !batch->ended[i];
            double value = scored ? advantage_of(objective, reward, &group) : 0;
            advantage[i] = (float)fmin(fmax(value, -FLT_MAX), FLT_MAX);
            active[i] = scored && !masked;
        }
    }
}

/* ---- weights -------------------------------------------------------------------------------- */

struct WeightSums objective_weight_sums(int num_sequences, const int *length,
                                        const unsigned char *active) {
    struct WeightSums sums = {.all_sequences = num_sequences};
    for (int i = 0; i < num_sequences; i++) {
        if (!active[i] || length[i] <= 0) continue;
        sums.tokens += length[i];
        sums.sequences += 1;
    }
    return sums;
}

void objective_weights(const struct Objective *objective, struct WeightSums all, int max_tokens,
                       int num_sequences, const int *length, const unsigned char *active,
                       float *weight) {
    for (int i = 0; i < num_sequences; i++) {
        weight[i] = 0;
        if (!active[i] || length[i] <= 0) continue;
        switch (objective->aggregation) {
        case AGGREGATE_TOKEN_MEAN: weight[i] = (float)(1 / all.tokens); break;
        case AGGREGATE_SEQUENCE_MEAN: weight[i] = (float)(1 / (all.sequences * length[i])); break;
        case AGGREGATE_CONSTANT: weight[i] = (float)(1 / (all.all_sequences * max_tokens)); break;
        }
    }
}
