/* Texts that grow, and lists of them. */
#include "test.h"
#include "../llmc/base/json.h"
#include "../llmc/base/text.h"

/* Any bytes, zeros too, through every size at which the block grows. */
static void test_text_grows(void **state) {
    (void)state;
    struct Text text = {0};
    char expected[3000];
    text_clear(&text);
    assert_string_equal(text.bytes, "");
    for (size_t i = 0; i < sizeof expected; i++) {
        expected[i] = (char)(i % 7 * 37);
        text_append(&text, &expected[i], 1);
        assert_int_equal(text.length, i + 1);
        assert_int_equal(text.bytes[i + 1], 0);
    }
    assert_memory_equal(text.bytes, expected, sizeof expected);
    text_clear(&text);
    assert_int_equal(text.length, 0);
    assert_string_equal(text.bytes, "");
    text_free(&text);
    assert_null(text.bytes);
}

static void test_text_format(void **state) {
    (void)state;
    struct Text text = {0};
    text_format(&text, "%s", "");
    assert_string_equal(text.bytes, "");
    text_format(&text, "%d-%s", 42, "abc");
    text_format(&text, "%200d", 7);
    assert_int_equal(text.length, 206);
    assert_memory_equal(text.bytes, "42-abc   ", 9);
    assert_int_equal(text.bytes[205], '7');
    assert_int_equal(text.bytes[206], 0);
    text_free(&text);
}

static void test_list(void **state) {
    (void)state;
    struct TextList list = {0};
    text_list_cut(&list, 0);   /* of nothing */
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 300; i++) {
            char text[301];
            memset(text, 'a' + i % 26, sizeof text);
            text_list_add(&list, text, (size_t)i);
        }
        assert_int_equal(list.count, 300);
        for (int i = 0; i < 300; i++) {
            assert_int_equal(text_list_length(&list, i), i);
            assert_int_equal(strlen(text_list_at(&list, i)), i);
            if (i > 0) assert_int_equal(text_list_at(&list, i)[i - 1], 'a' + i % 26);
        }
        text_list_cut(&list, 400);
        assert_int_equal(list.count, 300);
        text_list_cut(&list, 200);
        text_list_add(&list, "x\0y", 3);
        assert_int_equal(list.count, 201);
        assert_int_equal(text_list_length(&list, 200), 3);
        assert_memory_equal(text_list_at(&list, 200), "x\0y", 4);
        assert_int_equal(text_list_length(&list, 199), 199);
        text_list_cut(&list, 0);
        assert_int_equal(list.count, 0);
    }
    text_list_free(&list);
    assert_int_equal(list.capacity, 0);
}

/* What RFC 8259 says of texts, of which cJSON reads most; and where the fault is. */
static void test_json_fault(void **state) {
    (void)state;
    static const struct { const char *text; enum JsonFault fault; size_t at; } cases[] = {
        {" {\"a\" :\t[0, -0, 10, -1.50, 2e7, 2E+07, 0.1e-2]\r\n}\n", JSON_GOOD, 0},
        {"{\"\\\\u0000\\\"\\n\\u000a\": \"\xC3\xA9 01 1. +\x7F\"}", JSON_GOOD, 0},
        {"[]\v", JSON_LAX, 2},           {"[\f1]", JSON_LAX, 1},    {"[\"a\tb\"]", JSON_LAX, 3},
        {"[\"\n\"]", JSON_LAX, 2},       {"[01]", JSON_LAX, 1},     {"[-01]", JSON_LAX, 1},
        {"[1.]", JSON_LAX, 1},           {"[-.5]", JSON_LAX, 1},    {"[1.e5]", JSON_LAX, 1},
        {"[2, 1e]", JSON_LAX, 4},        {"[1e+]", JSON_LAX, 1},    {"[00]", JSON_LAX, 1},
        {"\xEF\xBB\xBF[]", JSON_LAX, 0}, {"[\"\\u0000\"]", JSON_ZERO, 2},
        {"{\"\\\\\\u0000\": 1}", JSON_ZERO, 4},
    };
    const char *problem;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t at, length = strlen(cases[i].text);
        enum JsonFault fault = json_fault(cases[i].text, length, &at);
        if (fault != cases[i].fault || (fault != JSON_GOOD && at != cases[i].at))
            fail_msg("%s: %d at %zu", cases[i].text, (int)fault, at);
    }
    cJSON *json = json_parse("\xEF\xBB\xBF{\"a\": 1} \n", 13, &problem);
    assert_non_null(json);
    cJSON_Delete(json);
    assert_null(json_parse("\xEF\xBB\xBF{\"a\": 01}", 12, &problem));
    assert_string_equal(problem, "is not JSON, at byte 9");
    assert_null(json_parse("{\"a\": \"\\u0000\"}", 15, &problem));
    assert_string_equal(problem, "has the character \\u0000 at byte 7, which is not read here");
    assert_null(json_parse("{\"a\": \"\xC3\"}", 10, &problem));
    assert_string_equal(problem, "is not UTF-8");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_grows),
        cmocka_unit_test(test_text_format),
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_json_fault),
    };
    return cmocka_run_group_tests_name("text", tests, NULL, NULL);
}
