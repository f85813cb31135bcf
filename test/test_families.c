/* Families: named sizes, configs that are refused, the table of tensors, and absent tensors. */
#include "test.h"
#include "../llmc/kernels/backends.h"
#include <cjson/cJSON.h>
#include "../llmc/model.h"

static struct ModelConfig config_of(int L, int NH, int HS, int F, int V, int Vp, int max_T,
                                    bool tied) {
    return (struct ModelConfig){.family = "gpt2", .L = L, .NH = NH, .NKV = NH, .C = NH * HS,
                                .HS = HS, .F = F, .V = V, .V_saved = V, .Vp = Vp, .max_T = max_T,
                                .tied = tied, .norm_epsilon = 1e-5};
}

/* ---- configurations, table, initial weights ------------------------------------------------- */

static void test_named_sizes_have_the_published_parameters(void **state) {
    (void)state;
    const struct {
        const char *name;
        int V;
        size_t parameters;
    } rows[] = {
        {"tiny", 24, 152640},           {"gpt2", 50257, 124439808},
        {"gpt2-medium", 50257, 354823168}, {"gpt2-large", 50257, 774030080},
        {"gpt2-xl", 50257, 1557611200},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct ModelConfig config = {0};
        assert_true(model_config_named(&config, rows[i].name));
        assert_non_null(strstr(model_config_names(), rows[i].name));
        config.V = config.V_saved = rows[i].V;
        for (int untied = 0; untied < 2; untied++) {
            config.tied = !untied;
            config.Vp = (config.V / 128 + 1) * 128;
            struct Model *model = model_build(&config, NULL);
            size_t expected = rows[i].parameters + (untied ? (size_t)config.V * config.C : 0);
            assert_int_equal(model->num_real_parameters, expected);
            model_free(model);
        }
    }
    struct ModelConfig config;
    assert_false(model_config_named(&config, "gpt3"));
}

static void test_bad_configs_are_refused(void **state) {
    (void)state;
    const struct ModelConfig good = config_of(2, 3, 8, 96, 61, 64, 24, true);
    assert_null(model_config_problem(&good));
    struct ModelConfig bad[16];
    for (int i = 0; i < 16; i++) bad[i] = good;
    bad[0].L = 0, bad[1].NH = 5, bad[2].C = -24, bad[3].HS = 7, bad[4].F = 0, bad[5].V = 0;
    bad[6].Vp = 60, bad[7].max_T = 0, bad[8].NKV = 1;
    bad[9].V = bad[9].V_saved = bad[9].Vp = 1 << 30;
    snprintf(bad[10].family, sizeof bad[10].family, "mamba");
    bad[11].L = 100000;
    bad[12].V_saved = 60, bad[13].V_saved = 65, bad[14].NKV = 0, bad[15].norm_epsilon = 0;
    for (int i = 0; i < 16; i++)
        if (model_config_problem(&bad[i]) == NULL) fail_msg("config %d was accepted", i);
}

static void test_table_covers_the_buffer(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        struct ModelConfig config = config_of(2, 3, 5, 44, 37, 48, 11, tied);
        config.V_saved = 40;
        struct Model *model = model_build(&config, NULL);
        unsigned char *seen = calloc(model->num_parameters, 1);
        for (int i = 0; i < model->num_tensors; i++) {
            const struct Tensor *t = &model->tensors[i];
            assert_int_equal(t->offset % 8, 0);
            assert_int_equal(t->count, (size_t)t->shape[0] * (t->shape[1] ? t->shape[1] : 1));
            assert_int_equal(t->saved, i == 0 || t->offset == model->globals.head ? 40 * 15
                                                                                  : t->count);
            assert_true(t->offset + t->count <= model->num_parameters);
            /* nanoGPT's rule: what has two dimensions decays. */
            assert_int_equal(t->decay, t->shape[1] != 0);
            for (size_t j = 0; j < t->count; j++) {
                assert_int_equal(seen[t->offset + j], 0);
                seen[t->offset + j] = t->decay ? 2 : 1;
            }
        }
        int count;
        struct AdamwRange *ranges = model_adamw_ranges(model, 0.25f, &count);
        for (int i = 0; i < count; i++) {
            assert_true(ranges[i].begin < ranges[i].end);
            assert_true(i == 0 || ranges[i - 1].end <= ranges[i].begin);
            for (size_t j = ranges[i].begin; j < ranges[i].end; j++) {
                assert_int_equal(seen[j], ranges[i].weight_decay == 0.25f ? 2 : 1);
                seen[j] = 3;
            }
        }
        /* the optimizer's ranges hold all elements but those of rows from V on */
        for (int i = 0; i < model->num_tensors; i++) {
            const struct Tensor *t = &model->tensors[i];
            size_t trained = t->shape[0] == config.Vp ? 37 * 15 : t->count;
            for (size_t j = 0; j < t->count; j++)
                assert_int_equal(seen[t->offset + j] == 3, j < trained);
        }
        assert_true(tied == (model->globals.head == model->globals.wte));
        assert_string_equal(model->tensors[4].name, "transformer.h.0.attn.c_attn.weight");
        assert_string_equal(model->tensors[14].name, "transformer.h.1.ln_1.weight");
        free(ranges);
        free(seen);
        model_free(model);
    }
}

/* A family like GPT-2, without the tensors named in `without`. */
static struct Family family_without(struct TensorRow *rows, const char *const *without) {
    struct Family family = *family_find("gpt2");
    int n = 0;
    for (int i = 0; i < family.num_rows; i++) {
        bool left_out = false;
        for (int k = 0; without[k]; k++)
            left_out = left_out || strstr(family.rows[i].name, without[k]) != NULL;
        if (!left_out) rows[n++] = family.rows[i];
    }
    assert_true(n < family.num_rows);
    family.rows = rows, family.num_rows = n;
    return family;
}

/* For a tensor that the family does not have, the pointers to weight and gradient are NULL; for the
   tensor at offset 0 they are not. */
static void test_absent_tensors_are_null(void **state) {
    (void)state;
    static const char *const without[] = {"wpe", "ln_1.bias", "mlp.c_fc.bias", "ln_f.bias",
                                          "lm_head", NULL};
    struct TensorRow rows[32];
    const struct Family family = family_without(rows, without);
    const struct ModelConfig config = config_of(2, 3, 8, 96, 61, 64, 24, false);
    const struct Ops *ops = ops_open("cpu", "auto", 0);
    struct Model *model = model_build_as(&family, &config, ops, 1);
    size_t bytes = model->num_parameters * sizeof(float);
    struct Weights weights = {.data = ops->alloc(bytes)};
    float *grads = ops->alloc(bytes);
    const struct GlobalWeights w = model_global_weights(model, &weights);
    const struct GlobalGradients d = model_global_gradients(model, grads);
    assert_ptr_equal(w.wte, weights.data);
    assert_ptr_equal(d.wte, grads);
    assert_null(w.wpe), assert_null(d.wpe);
    assert_null(w.ln_f_bias), assert_null(d.ln_f_bias);
    assert_null(w.head), assert_null(d.head);
    assert_ptr_equal((const char *)w.ln_f_weight - (const char *)weights.data,
                     (const char *)d.ln_f_weight - (const char *)grads);
    for (int l = 0; l < config.L; l++) {
        const struct LayerWeights lw = model_layer_weights(model, &weights, l);
        const struct LayerGradients ld = model_layer_gradients(model, grads, l);
        assert_null(lw.ln_1_bias), assert_null(ld.ln_1_bias);
        assert_null(lw.fc_bias), assert_null(ld.fc_bias);
        assert_non_null(lw.ln_1_weight), assert_non_null(ld.ln_1_weight);
        assert_non_null(lw.fc_proj_bias), assert_non_null(ld.fc_proj_bias);
    }
    ops->free(weights.data), ops->free(grads);
    model_free(model);
}

/* Every family of the list has what family.h asks for, its rows name fields once, and its sizes can
   be built. */
static void test_every_family_is_whole(void **state) {
    (void)state;
    const struct Family *family;
    for (int f = 0; (family = family_at(f)) != NULL; f++) {
        assert_ptr_equal(family_find(family->name), family);
        assert_non_null(strstr(family_names(), family->name));
        assert_non_null(strstr(model_config_names(), family->size_names));
        assert_true(family->read_config && family->write_config && family->problem);
        assert_true(family->named_size && family->prefix && family->ignored_suffixes);
        for (int i = 0; i < family->num_rows; i++)
            for (int j = 0; j < i; j++) {
                const struct TensorRow *a = &family->rows[i], *b = &family->rows[j];
                assert_string_not_equal(a->name, b->name);
                bool same_struct = (a->flags & PER_LAYER) == (b->flags & PER_LAYER);
                bool same_field = same_struct && a->field == b->field;
                /* of a field of several tensors, all but the first are joined to the one before */
                if (j == i - 1) assert_int_equal(same_field, (a->flags & JOINED) != 0);
                assert_true(!same_field || a->flags & JOINED);
            }
    }
    assert_null(family_find("no such family"));
}

/* ---- config.json ----------------------------------------------------------------------------- */

/* NULL, or the sentence that says what is wrong. */
static const char *read_text(struct ModelConfig *config, const char *text) {
    cJSON *json = cJSON_Parse(text);
    if (json == NULL) fail_msg("not JSON: %s", text);
    const char *problem = model_config_read(config, json);
    cJSON_Delete(json);
    return problem;
}

#define LLAMA32                                                                                   \
    "\"model_type\":\"llama\",\"hidden_act\":\"silu\",\"hidden_size\":2048,"                      \
    "\"num_hidden_layers\":16,\"num_attention_heads\":32,\"num_key_value_heads\":8,"              \
    "\"head_dim\":64,\"intermediate_size\":8192,\"vocab_size\":128256,"                           \
    "\"max_position_embeddings\":131072,\"rms_norm_eps\":1e-05,"                                  \
    "\"tie_word_embeddings\":true,\"attention_bias\":false,\"mlp_bias\":false,"                   \
    "\"pretraining_tp\":1,\"attention_dropout\":0.0,"
#define QWEN3                                                                                     \
    "{\"model_type\":\"qwen3\",\"hidden_size\":1024,\"num_hidden_layers\":28,"                    \
    "\"num_attention_heads\":16,\"num_key_value_heads\":8,\"head_dim\":128,"                      \
    "\"intermediate_size\":3072,\"vocab_size\":151936,\"max_position_embeddings\":40960,"         \
    "\"rope_theta\":1000000,\"tie_word_embeddings\":true,\"sliding_window\":null,"                \
    "\"use_sliding_window\":false,\"max_window_layers\":28,\"rope_scaling\":null"

/* The shapes of published models, and their numbers of parameters as published. */
static void test_published_models(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t parameters;
        double theta;
    } rows[] = {
        {"{\"model_type\":\"llama\",\"hidden_size\":576,\"num_hidden_layers\":30,"
         "\"num_attention_heads\":9,\"num_key_value_heads\":3,\"intermediate_size\":1536,"
         "\"vocab_size\":49152,\"max_position_embeddings\":8192,\"rope_theta\":100000,"
         "\"rope_interleaved\":false,\"tie_word_embeddings\":true}", 134515008, 100000},
        {"{\"model_type\":\"llama\",\"hidden_size\":4096,\"num_hidden_layers\":32,"
         "\"num_attention_heads\":32,\"intermediate_size\":11008,\"vocab_size\":32000,"
         "\"max_position_embeddings\":4096}", 6738415616, 10000},
        {"{" LLAMA32 "\"rope_theta\":500000.0,\"rope_scaling\":{\"factor\":32.0,"
         "\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,\"rope_type\":\"llama3\","
         "\"original_max_position_embeddings\":8192}}", 1235814400, 500000},
        {"{\"model_type\":\"mistral\",\"hidden_size\":4096,\"num_hidden_layers\":32,"
         "\"num_attention_heads\":32,\"num_key_value_heads\":8,\"intermediate_size\":14336,"
         "\"vocab_size\":32768,\"max_position_embeddings\":32768,\"sliding_window\":null,"
         "\"rope_theta\":1000000.0}", 7248023552, 1000000},
        {"{\"model_type\":\"qwen2\",\"hidden_size\":896,\"num_hidden_layers\":24,"
         "\"num_attention_heads\":14,\"num_key_value_heads\":2,\"intermediate_size\":4864,"
         "\"vocab_size\":151936,\"max_position_embeddings\":32768,\"sliding_window\":32768,"
         "\"use_sliding_window\":false,\"max_window_layers\":21,\"rope_theta\":1000000.0,"
         "\"tie_word_embeddings\":true}", 494032768, 1000000},
        {QWEN3 "}", 596049920, 1000000},
        {"{\"model_type\":\"qwen3\",\"hidden_size\":4096,\"num_hidden_layers\":36,"
         "\"num_attention_heads\":32,\"num_key_value_heads\":8,\"intermediate_size\":12288,"
         "\"vocab_size\":151936,\"max_position_embeddings\":40960,\"rope_parameters\":"
         "{\"rope_theta\":1000000,\"rope_type\":\"default\"}}", 8190735360, 1000000},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct ModelConfig config;
        const char *problem = read_text(&config, rows[i].text);
        if (problem) fail_msg("model %zu: %s", i, problem);
        struct Model *model = model_build(&config, NULL);
        assert_int_equal(model->num_real_parameters, rows[i].parameters);
        assert_true(config.rope.theta == rows[i].theta);
        model_free(model);
    }
}

/* Both spellings give one config, and what is written is read back as it was. */
static void test_configs_of_both_transformers(void **state) {
    (void)state;
    static const char scaling[] = "\"factor\":32.0,\"high_freq_factor\":4.0,"
                                  "\"low_freq_factor\":1.0,"
                                  "\"original_max_position_embeddings\":8192";
    char old[1024], new[1024];
    snprintf(old, sizeof old, "{%s\"rope_theta\":5e5,\"rope_scaling\":{%s,\"type\":\"llama3\"}}",
             LLAMA32, scaling);
    snprintf(new, sizeof new,
             "{%s\"rope_parameters\":{%s,\"rope_theta\":5e5,\"rope_type\":\"llama3\"}}", LLAMA32,
             scaling);
    struct ModelConfig a, b;
    assert_null(read_text(&a, old));
    assert_null(read_text(&b, new));
    assert_memory_equal(&a, &b, sizeof a);
    const struct Family *family;
    for (int i = 0; (family = family_at(i)) != NULL; i++) {
        if (family->inv_freq == NULL) continue;
        struct ModelConfig config = {.V = 61, .V_saved = 61, .Vp = 61};
        assert_true(model_config_named(&config, family->size_names));
        config.rope = a.rope;
        config.tied = i % 2;
        cJSON *json = cJSON_CreateObject();
        model_config_write(json, &config, 60);
        assert_null(model_config_read(&b, json));
        assert_memory_equal(&config, &b, sizeof b);
        cJSON_Delete(json);
    }
}

/* What cannot be run exactly is named. */
static void test_variants_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *more, *named;   /* NULL: it is run */
    } rows[] = {
        {"", NULL},
        {",\"hidden_act\":\"gelu\"", "hidden_act"},
        {",\"hidden_act\":\"silu\"", NULL},
        {",\"use_sliding_window\":true,\"sliding_window\":128,\"max_window_layers\":3", "sliding"},
        {",\"sliding_window\":128", NULL},
        {",\"use_sliding_window\":true,\"sliding_window\":128,\"max_window_layers\":4", NULL},
        {",\"use_sliding_window\":true,\"sliding_window\":512", NULL},
        {",\"sliding_window\":128,\"max_window_layers\":0", NULL},
        {",\"use_sliding_window\":true,\"sliding_window\":128,\"max_window_layers\":0", "sliding"},
        {",\"use_sliding_window\":true,\"max_window_layers\":-1", "max_window_layers"},
        {",\"layer_types\":[\"full_attention\",\"sliding_attention\"],\"sliding_window\":128",
         "sliding"},
        {",\"layer_types\":[\"full_attention\",\"linear_attention\"]", "linear_attention"},
        {",\"layer_types\":[\"full_attention\",7]", "layer_types"},
        {",\"partial_rotary_factor\":0.5", "partial_rotary_factor"},
        {",\"partial_rotary_factor\":1.0", NULL},
        {",\"rope_parameters\":{\"partial_rotary_factor\":0.25}", "partial_rotary_factor"},
        {",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0}", "yarn"},
        {",\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":4.0}", "dynamic"},
        {",\"rope_scaling\":{\"rope_type\":\"longrope\",\"short_factor\":[1]}", "longrope"},
        {",\"rope_scaling\":{\"rope_type\":7}", "type"},
        {",\"rope_scaling\":7", "rope_scaling"},
        {",\"rope_scaling\":{}", NULL},
        {",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4.0}", NULL},
        {",\"rope_scaling\":{\"rope_type\":\"linear\"}", "factor"},
        {",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0.0}", "factor"},
        {",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
         "\"high_freq_factor\":4}", "high_freq_factor"},
        {",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e4}}", "full_attention"},
        {",\"rope_parameters\":{\"rope_theta\":1e4},\"rope_scaling\":{\"factor\":2}", "differ"},
        {",\"rope_theta\":-1", "rope_theta"},
        {",\"rope_theta\":\"1e4\"", "rope_theta"},
        {",\"num_experts\":8", "num_experts"},
        {",\"num_local_experts\":8", "mixture of experts"},
        {",\"quantization_config\":{\"quant_method\":\"gptq\"}", "quantization_config"},
        {",\"quantization_config\":null", NULL},
        {",\"attention_bias\":1", "attention_bias"},
        {",\"tie_word_embeddings\":\"no\"", "tie_word_embeddings"},
        {",\"rms_norm_eps\":0", "rms_norm_eps"},
        {",\"rms_norm_eps\":2", "rms_norm_eps"},
        {",\"head_dim\":7", "7 channels"},
        {",\"head_dim\":0", "head_dim"},
        {",\"num_key_value_heads\":3", "key-value"},
        {",\"attention_dropout\":0.1,\"pretraining_tp\":4,\"torch_dtype\":\"bfloat16\"", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[1024];
        snprintf(text, sizeof text,
                 "{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":4,"
                 "\"num_attention_heads\":4,\"intermediate_size\":96,\"vocab_size\":61,"
                 "\"max_position_embeddings\":512%s}", rows[i].more);
        struct ModelConfig config;
        const char *problem = read_text(&config, text);
        if (rows[i].named == NULL && problem) fail_msg("%s: %s", rows[i].more, problem);
        if (rows[i].named && (problem == NULL || strstr(problem, rows[i].named) == NULL))
            fail_msg("%s: %s", rows[i].more, problem ? problem : "was accepted");
    }
    struct ModelConfig config;
    assert_non_null(strstr(read_text(&config, "{\"model_type\":\"qwen3_moe\"}"), "qwen3_moe"));
    assert_non_null(strstr(read_text(&config, "{\"model_type\":\"mistral\",\"hidden_size\":64,"
                                     "\"num_hidden_layers\":4,\"num_attention_heads\":4,"
                                     "\"num_key_value_heads\":4,\"intermediate_size\":96,"
                                     "\"vocab_size\":61,\"max_position_embeddings\":32768}"),
                           "sliding"));
}

/* The frequencies of Llama 3.1 8B's rotation by the published formula in double. */
static void test_llama3_frequencies(void **state) {
    (void)state;
    struct ModelConfig config = {.HS = 128, .rope = {ROPE_LLAMA3, 500000, 8, 1, 4, 8192}};
    float found[64];
    family_find("llama")->inv_freq(found, &config);
    for (int i = 0; i < 64; i++) {
        double f = pow(500000, -i / 64.0), length = 2 * M_PI / f;
        double smooth = (8192 / length - 1) / (4 - 1);
        double expected = length < 8192 / 4.0   ? f
                          : length > 8192 / 1.0 ? f / 8
                                                : (1 - smooth) * f / 8 + smooth * f;
        ASSERT_CLOSE("frequency", fabs(found[i] / expected - 1), 1e-6);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_named_sizes_have_the_published_parameters),
        cmocka_unit_test(test_bad_configs_are_refused),
        cmocka_unit_test(test_table_covers_the_buffer),
        cmocka_unit_test(test_absent_tensors_are_null),
        cmocka_unit_test(test_every_family_is_whole),
        cmocka_unit_test(test_published_models),
        cmocka_unit_test(test_configs_of_both_transformers),
        cmocka_unit_test(test_variants_are_refused),
        cmocka_unit_test(test_llama3_frequencies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
