/* The emulator's settings come from one environment variable, CUDASIM="order=random,seed=3", so
   that the very same test program can be run under all of them. An unknown word is an error. */
#include "emulator.h"

namespace cudasim {

struct OptionRow {
    const char *name;
    const char *words; /* values by name, in the order of their numbers; null: a plain number */
    int Options::*place;
    int default_value;
};

static const OptionRow rows[] = {
    {"order", "ascending descending random", &Options::order, ASCENDING},
    {"seed", nullptr, &Options::seed, 1},
    {"resident", nullptr, &Options::resident, 1},
    {"streams", "eager random oldest newest", &Options::streams_random, 0},
    {"copies", "early late", &Options::copies_late, 1},
    {"protect", nullptr, &Options::protect, 0},
    {"shared_limit", nullptr, &Options::shared_limit, 227 * 1024},
    {"timeout", nullptr, &Options::timeout, 120},
    {"devices", nullptr, &Options::devices, 1},
    {"multiprocessors", nullptr, &Options::multiprocessors, 4},
    {"capability", nullptr, &Options::capability, 90},
};

/* The number a word stands for in a list of words, or -1. */
static int find_word(const char *words, const std::string &word) {
    std::string list = words;
    int number = 0;
    for (size_t begin = 0; begin < list.size(); number++) {
        size_t end = list.find(' ', begin);
        if (end == std::string::npos) end = list.size();
        if (list.compare(begin, end - begin, word) == 0) return number;
        begin = end + 1;
    }
    return -1;
}

static int parse_value(const OptionRow &row, const std::string &text) {
    int value = -1;
    if (row.words) {
        value = find_word(row.words, text);
    } else {
        char *end;
        long number = strtol(text.c_str(), &end, 10);
        if (!text.empty() && *end == 0 && number >= 0 && number < INT_MAX) value = (int)number;
    }
    if (value < 0)
        fail("CUDASIM: %s=%s: %s%s expected", row.name, text.c_str(), row.words ? "one of: " : "",
             row.words ? row.words : "a number");
    return value;
}

static void parse_setting(Options &options, const std::string &setting) {
    size_t equals = setting.find('=');
    std::string name = setting.substr(0, equals);
    for (const OptionRow &row : rows) {
        if (name != row.name || equals == std::string::npos) continue;
        options.*row.place = parse_value(row, setting.substr(equals + 1));
        return;
    }
    std::string known;
    for (const OptionRow &row : rows) known += std::string(" ") + row.name;
    fail("CUDASIM: cannot read \"%s\"; name=value separated by commas, names:%s", setting.c_str(),
         known.c_str());
}

static Options read_options() {
    Options options;
    for (const OptionRow &row : rows) options.*row.place = row.default_value;
    const char *text = getenv("CUDASIM");
    std::string all = text ? text : "";
    for (size_t begin = 0; begin < all.size();) {
        size_t end = all.find(',', begin);
        if (end == std::string::npos) end = all.size();
        if (end > begin) parse_setting(options, all.substr(begin, end - begin));
        begin = end + 1;
    }
    return options;
}

const Options &options() {
    static const Options all = read_options();
    return all;
}

/* xorshift64; the same seed gives the same schedule. */
unsigned random_number() {
    static uint64_t state = 0x9e3779b97f4a7c15ull * ((uint64_t)options().seed + 1);
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 20);
}

} // namespace cudasim
