/* Rotary position (2104.09864): the frequencies of the rotation, and their keys in config.json.

   transformers 4 writes "rope_theta", and "rope_scaling" (an object or null) beside it; 5 writes
   both into "rope_parameters". Each is read in files of either. */
#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>
#include "../base/text.h"
#include "decoder.h"

#define THETA 10000    /* where a file says nothing, as in transformers */
#define MOST_PARTS 100 /* of two descriptions that are compared, each part with each */

/* ---- config.json ---------------------------------------------------------------------------- */

static const cJSON *find(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    return cJSON_IsNull(item) ? NULL : item;
}

/* A number in [1, 1e12]; `missing` (0: required) where the key is absent. */
static const char *read_number(double *out, const cJSON *json, const char *key, double missing) {
    const cJSON *item = find(json, key);
    if (item == NULL && missing > 0) {
        *out = missing;
        return NULL;
    }
    *out = cJSON_IsNumber(item) ? item->valuedouble : 0;
    if (*out >= 1 && *out <= 1e12) return NULL;
    return family_sentence("the rotary position's \"%s\" must be a number in [1, 1e12]", key);
}

/* Is there an object in it? Two such values are not compared: for each object around another cJSON
   takes twice the time. */
static bool has_object(const cJSON *item) {
    const cJSON *part;
    if (cJSON_IsObject(item)) return true;
    cJSON_ArrayForEach(part, item)
        if (has_object(part)) return true;
    return false;
}

/* Finds the object that describes the rotation, NULL where there is none. transformers 5 takes
   rope_scaling where both have something in them; two that differ are refused. */
static const char *find_parameters(const cJSON **out, const cJSON *json) {
    static const char *const keys[] = {"rope_scaling", "rope_parameters"};
    *out = NULL;
    for (int i = 0; i < 2; i++) {
        const cJSON *item = find(json, keys[i]), *part;
        if (item == NULL) continue;
        if (!cJSON_IsObject(item)) return family_sentence("\"%s\" must be an object", keys[i]);
        cJSON_ArrayForEach(part, item)
            if (has_object(part))
                return family_sentence("\"%s\" for each kind of layer (\"%s\") is not run here",
                                       keys[i], quote(part->string));
        if (item->child == NULL) continue;
        int parts = cJSON_GetArraySize(item);
        if (*out != NULL && (parts != cJSON_GetArraySize(*out) || parts > MOST_PARTS ||
                             !cJSON_Compare(*out, item, true)))
            return "\"rope_scaling\" and \"rope_parameters\" differ";
        *out = item;
    }
    return NULL;
}

static const char *read_llama3(struct Rope *rope, const cJSON *json, const cJSON *parameters,
                               int max_T) {
    static const char original[] = "original_max_position_embeddings";
    const char *problem = read_number(&rope->low_freq_factor, parameters, "low_freq_factor", 0);
    if (problem == NULL)
        problem = read_number(&rope->high_freq_factor, parameters, "high_freq_factor", 0);
    if (problem == NULL)
        problem = family_read_int(&rope->original_max_T, find(json, original) ? json : parameters,
                                  original, max_T);
    if (problem == NULL && !(rope->low_freq_factor < rope->high_freq_factor))
        problem = "the rotary position's \"high_freq_factor\" must be above \"low_freq_factor\"";
    return problem;
}

/* Only a rotation of whole heads is known here. */
static const char *check_partial(const cJSON *json) {
    const cJSON *part = find(json, "partial_rotary_factor");
    if (part == NULL || (cJSON_IsNumber(part) && part->valuedouble == 1)) return NULL;
    return "a rotation of parts of the heads (\"partial_rotary_factor\") is not run here";
}

const char *rotary_read(struct Rope *rope, const cJSON *json, int max_T) {
    const cJSON *parameters, *type;
    const char *problem = find_parameters(&parameters, json);
    memset(rope, 0, sizeof *rope);
    if (problem == NULL) problem = check_partial(json);
    if (problem == NULL) problem = check_partial(parameters);
    if (problem == NULL)
        problem = read_number(&rope->theta, find(parameters, "rope_theta") ? parameters : json,
                              "rope_theta", THETA);
    if (problem != NULL || parameters == NULL) return problem;
    type = find(parameters, "rope_type");
    if (type == NULL) type = find(parameters, "type");
    const char *name = type == NULL ? "default" : cJSON_IsString(type) ? type->valuestring : "";
    if (strcmp(name, "default") == 0) return NULL;
    rope->kind = strcmp(name, "linear") == 0   ? ROPE_LINEAR
                 : strcmp(name, "llama3") == 0 ? ROPE_LLAMA3
                                               : ROPE_PLAIN;
    if (rope->kind == ROPE_PLAIN)
        return family_sentence("the rotary position's type \"%s\" is not run here (\"default\", "
                               "\"linear\" and \"llama3\" are)", quote(name));
    problem = read_number(&rope->factor, parameters, "factor", 0);
    if (problem == NULL && rope->kind == ROPE_LLAMA3)
        problem = read_llama3(rope, json, parameters, max_T);
    return problem;
}

void rotary_write(cJSON *json, const struct Rope *rope) {
    cJSON_AddNumberToObject(json, "rope_theta", rope->theta);
    if (rope->kind == ROPE_PLAIN) {
        cJSON_AddNullToObject(json, "rope_scaling");
        return;
    }
    cJSON *scaling = cJSON_AddObjectToObject(json, "rope_scaling");
    cJSON_AddStringToObject(scaling, "rope_type", rope->kind == ROPE_LINEAR ? "linear" : "llama3");
    cJSON_AddNumberToObject(scaling, "factor", rope->factor);
    if (rope->kind != ROPE_LLAMA3) return;
    cJSON_AddNumberToObject(scaling, "low_freq_factor", rope->low_freq_factor);
    cJSON_AddNumberToObject(scaling, "high_freq_factor", rope->high_freq_factor);
    cJSON_AddNumberToObject(scaling, "original_max_position_embeddings", rope->original_max_T);
}

const char *rotary_problem(const struct ModelConfig *config) {
    if (config->HS % 2 != 0)
        return family_sentence("heads of %d channels cannot be rotated in pairs", config->HS);
    if (!(config->rope.theta >= 1)) return "the rotary position has no theta";
    return NULL;
}

/* ---- frequencies ---------------------------------------------------------------------------- */

/* Llama 3.1's scaling: what turns slowly is slowed down by factor, what turns fast stays, and what
   lies between is between. How often pair i turns within the original context decides. */
static double llama3_scaled(double frequency, const struct Rope *rope) {
    double turns = rope->original_max_T * frequency / (2 * M_PI);
    if (turns > rope->high_freq_factor) return frequency;
    if (turns < rope->low_freq_factor) return frequency / rope->factor;
    double smooth = (turns - rope->low_freq_factor) /
                    (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - smooth) * frequency / rope->factor + smooth * frequency;
}

/* theta^(-2i/HS), each step rounded to float32 as transformers rounds it: models were trained with
   these frequencies, and at position 10^5 one unit in the last place is an angle of 0.006. */
void rotary_frequencies(float *out, const struct ModelConfig *config) {
    const struct Rope *rope = &config->rope;
    for (int i = 0; i < config->HS / 2; i++) {
        float exponent = (float)(2 * i) / (float)config->HS;
        float frequency = 1.0f / (float)pow(rope->theta, (double)exponent);
        if (rope->kind == ROPE_LINEAR) frequency = frequency / (float)rope->factor;
        if (rope->kind == ROPE_LLAMA3) frequency = (float)llama3_scaled((double)frequency, rope);
        out[i] = frequency;
    }
}
