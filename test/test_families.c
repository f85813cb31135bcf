/* Families: named sizes, configs that are refused, the table of tensors, and absent tensors. */
#include "test.h"
#include "../llmc/kernels/backends.h"
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
    snprintf(bad[10].family, sizeof bad[10].family, "llama");
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
    const struct Ops *ops = ops_open("cpu", "auto");
    struct Model *model = model_build_as(&family, &config, ops);
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
                assert_false(same_struct && a->field == b->field);
            }
    }
    assert_null(family_find("no such family"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_named_sizes_have_the_published_parameters),
        cmocka_unit_test(test_bad_configs_are_refused),
        cmocka_unit_test(test_table_covers_the_buffer),
        cmocka_unit_test(test_absent_tensors_are_null),
        cmocka_unit_test(test_every_family_is_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
