#include "number.h"

#include <stdint.h>
#include <string.h>

/* ---- exact values ---------------------------------------------------------------------------- */

/* Takes the zeros off both ends. */
static void normalise(struct Decimal *d) {
    int zeros = 0;
    while (zeros < d->count && d->digits[zeros] == 0) zeros++;
    d->count -= zeros;
    memmove(d->digits, d->digits + zeros, (size_t)d->count);
    while (d->count > 0 && d->digits[d->count - 1] == 0) d->count--, d->exponent++;
    if (d->count == 0) d->exponent = 0;
}

static struct Decimal decimal_of(uint64_t value) {
    struct Decimal d = {.count = 20};
    for (int i = d.count; i-- > 0; value /= 10) d.digits[i] = (char)(value % 10);
    normalise(&d);
    return d;
}

/* a x b. The product may be twice as long as either. */
struct Product {
    unsigned char digits[2 * MOST_DIGITS];
    int count, exponent;
};

static struct Product multiply(const struct Decimal *a, const struct Decimal *b) {
    struct Product p = {.count = a->count + b->count, .exponent = a->exponent + b->exponent};
    for (int i = a->count; i-- > 0;) {
        int carry = 0;
        for (int j = b->count; j-- > 0;) {
            int sum = p.digits[i + j + 1] + a->digits[i] * b->digits[j] + carry;
            p.digits[i + j + 1] = (unsigned char)(sum % 10);
            carry = sum / 10;
        }
        p.digits[i] = (unsigned char)carry;
    }
    while (p.count > 0 && p.digits[p.count - 1] == 0) p.count--, p.exponent++;
    return p;
}

static bool same_product(const struct Product *a, const struct Product *b) {
    int i = 0, j = 0;
    while (i < a->count && a->digits[i] == 0) i++;
    while (j < b->count && b->digits[j] == 0) j++;
    return a->count - i == b->count - j && a->exponent == b->exponent &&
           memcmp(a->digits + i, b->digits + j, (size_t)(a->count - i)) == 0;
}

/* Is a = b x 10^shift? */
static bool equal_shifted(const struct Number *a, const struct Number *b, int shift) {
    if (!a->valued || !b->valued) return false;
    if (a->above.count == 0 || b->above.count == 0) return a->above.count == b->above.count;
    struct Product left = multiply(&a->above, &b->below), right = multiply(&b->above, &a->below);
    right.exponent += shift;
    return a->negative == b->negative && same_product(&left, &right);
}

bool number_equal(const struct Number *a, const struct Number *b) {
    if (equal_shifted(a, b, 0)) return true;
    if (a->percent && !b->percent) return equal_shifted(a, b, 2);
    return b->percent && !a->percent && equal_shifted(a, b, -2);
}

/* ---- reading one number ---------------------------------------------------------------------- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/* Does the word stand at `at`? Then the end of it, else NULL. */
static const char *after(const char *at, const char *end, const char *word) {
    size_t n = strlen(word);
    return (size_t)(end - at) >= n && memcmp(at, word, n) == 0 ? at + n : NULL;
}

static const char *skip_blanks(const char *at, const char *end) {
    while (at < end && (*at == ' ' || *at == '\t')) at++;
    return at;
}

/* The end of a run of digits from `at` on, which is appended. */
static const char *read_digits(const char *at, const char *end, struct Decimal *d, bool *fits) {
    for (; at < end && is_digit(*at); at++) {
        if (d->count == MOST_DIGITS) *fits = false;
        else d->digits[d->count++] = (char)(*at - '0');
    }
    return at;
}

/* What sets off thousands at `at`, if exactly three digits follow: their place, else NULL. */
static const char *thousand_at(const char *at, const char *end) {
    static const char *const marks[] = {",\\!", "{,}", "\\,", ","};
    const char *digits = NULL;
    for (int i = 0; i < 4 && !digits; i++) digits = after(at, end, marks[i]);
    if (!digits || end - digits < 3) return NULL;
    for (int i = 0; i < 3; i++)
        if (!is_digit(digits[i])) return NULL;
    return end - digits > 3 && is_digit(digits[3]) ? NULL : digits;
}

/* An exponent of ten, `[+-]digits` at `at`, into d; the end, or NULL: there is none. */
static const char *read_power(const char *at, const char *end, struct Decimal *d, bool *fits) {
    bool negative = at < end && *at == '-';
    int power = 0;
    if (at < end && (*at == '-' || *at == '+')) at++;
    if (at == end || !is_digit(*at)) return NULL;
    for (; at < end && is_digit(*at); at++)
        if (power < 10000) power = 10 * power + *at - '0';
    if (power >= 10000) *fits = false;
    d->exponent += negative ? -power : power;
    return at;
}

/* ` \times 10^{3}` and its like behind a number; the end, or NULL. */
static const char *read_times_power(const char *at, const char *end, struct Decimal *d,
                                    bool *fits) {
    static const char *const signs[] = {"\\times", "\\cdot", "\xC3\x97", "x", "*"};
    const char *next = NULL;
    at = skip_blanks(at, end);
    for (int i = 0; i < 5 && !next; i++) next = after(at, end, signs[i]);
    if (!next || !(next = after(skip_blanks(next, end), end, "10^"))) return NULL;
    const char *inside = after(next, end, "{");
    next = read_power(inside ? inside : next, end, d, fits);
    return next && inside ? after(next, end, "}") : next;
}

/* Digits with thousands, fraction and power of ten; the end, or NULL: no number begins here. */
static const char *read_decimal(const char *at, const char *end, struct Decimal *d, bool *fits) {
    *d = (struct Decimal){.count = 0};
    const char *begin = at, *next = read_digits(at, end, d, fits);
    if (next - at >= 1 && next - at <= 3)
        for (const char *group; (group = thousand_at(next, end));)
            next = read_digits(group, end, d, fits);
    if (next < end && *next == '.' && (next > begin || (end - next > 1 && is_digit(next[1])))) {
        int before = d->count;
        next = read_digits(next + 1, end, d, fits);
        d->exponent = before - d->count;
    }
    if (next == begin) return NULL;
    struct Decimal with = *d;
    bool power_fits = *fits;
    const char *power = NULL;
    if (next < end && (*next == 'e' || *next == 'E'))
        power = read_power(next + 1, end, &with, &power_fits);
    if (power && power < end && is_letter(*power)) power = NULL;
    if (!power) power = read_times_power(next, end, &with, &power_fits);
    if (power) *d = with, *fits = power_fits, next = power;
    normalise(d);
    return next;
}

/* `{number}` or one digit, as \frac takes; the end, or NULL. */
static const char *read_part(const char *at, const char *end, struct Decimal *d, bool *negative,
                             bool *fits) {
    const char *inside = after(at, end, "{");
    if (!inside) {
        if (at == end || !is_digit(*at)) return NULL;
        return read_decimal(at, at + 1, d, fits);
    }
    inside = skip_blanks(inside, end);
    if (inside < end && *inside == '-') *negative = !*negative, inside++;
    const char *next = read_decimal(inside, end, d, fits);
    return next ? after(skip_blanks(next, end), end, "}") : NULL;
}

/* \frac{1}{2}, \dfrac12; the end, or NULL. */
static const char *read_latex_fraction(const char *at, const char *end, struct Number *out,
                                       bool *fits) {
    static const char *const names[] = {"\\frac", "\\dfrac", "\\tfrac"};
    const char *next = NULL;
    for (int i = 0; i < 3 && !next; i++) next = after(at, end, names[i]);
    if (next) next = read_part(skip_blanks(next, end), end, &out->above, &out->negative, fits);
    return next ? read_part(skip_blanks(next, end), end, &out->below, &out->negative, fits) : NULL;
}

/* The whole number that d is, at most nine digits; or -1. */
static int64_t small_whole(const struct Decimal *d) {
    int64_t value = 0;
    if (d->exponent < 0 || d->count + d->exponent > 9) return -1;
    for (int i = 0; i < d->count; i++) value = 10 * value + d->digits[i];
    for (int i = 0; i < d->exponent; i++) value *= 10;
    return value;
}

/* `whole` and the fraction in *out, as one fraction: 1\frac{1}{2}. */
static void mix(struct Number *out, const struct Decimal *whole, bool *fits) {
    int64_t a = small_whole(whole), b = small_whole(&out->above), c = small_whole(&out->below);
    if (a < 0 || b < 0 || c < 0) *fits = false;
    else out->above = decimal_of((uint64_t)(a * c + b)), out->below = decimal_of((uint64_t)c);
}

/* `1/2` whose first number is read: *out becomes the fraction. The end, or NULL: no fraction
   stands here (a date does not). */
static const char *read_slash(const char *at, const char *end, struct Number *out, bool *fits) {
    struct Decimal below;
    bool below_fits = *fits;
    if (end - at < 2 || *at != '/' || !is_digit(at[1])) return NULL;
    const char *next = read_decimal(at + 1, end, &below, &below_fits);
    if (!next || (end - next >= 2 && *next == '/' && is_digit(next[1]))) return NULL;
    out->below = below;
    *fits = below_fits;
    return next;
}

/* The fraction behind a whole number, `1\frac{1}{2}` or `1 1/2`; the end, or NULL. */
static const char *read_mixed(const char *at, const char *end, struct Number *out, bool *fits) {
    struct Number part = {.below = decimal_of(1)};
    struct Decimal whole = out->above;
    bool part_fits = *fits;
    const char *next = read_latex_fraction(at, end, &part, &part_fits);
    if (!next && at < end && *at == ' ' && (next = read_decimal(at + 1, end, &part.above,
                                                                &part_fits)))
        next = read_slash(next, end, &part, &part_fits);
    if (!next || part.negative) return NULL;
    out->above = part.above, out->below = part.below;
    mix(out, &whole, &part_fits);
    *fits = part_fits;
    return next;
}

/* The number that begins at `at`, its sign not included; the end, or NULL. chained: it stands
   behind a slash, as in a date, and is the first part of no fraction. */
static const char *read_number(const char *at, const char *end, bool chained,
                               struct Number *out) {
    bool fits = true;
    *out = (struct Number){.below = decimal_of(1)};
    const char *next = read_latex_fraction(at, end, out, &fits), *more;
    if (!next) {
        *out = (struct Number){.below = decimal_of(1)};
        fits = true;
        if (!(next = read_decimal(at, end, &out->above, &fits))) return NULL;
        if ((more = chained ? NULL : read_slash(next, end, out, &fits)) ||
            (out->above.exponent >= 0 && (more = read_mixed(next, end, out, &fits))))
            next = more;
    }
    out->valued = fits && out->below.count > 0;
    const char *sign = skip_blanks(next, end);
    if (sign < end && *sign == '\\') sign++;
    out->percent = sign < end && *sign == '%';
    return out->percent ? sign + 1 : next;
}

/* ---- finding it ------------------------------------------------------------------------------ */

/* Does [begin, at) end with the word? Then where it starts, else NULL. */
static const char *before(const char *begin, const char *at, const char *word) {
    size_t n = strlen(word);
    return (size_t)(at - begin) >= n && memcmp(at - n, word, n) == 0 ? at - n : NULL;
}

/* What stands before the number at `at`: may it be one at all, and is it negative? */
static bool may_begin(const char *begin, const char *at, bool *negative) {
    static const char *const money[] = {"\\$", "$", "\xE2\x82\xAC", "\xC2\xA3", "\xC2\xA5"};
    static const char *const minus[] = {"-", "\xE2\x88\x92"};
    const char *sign = NULL;
    *negative = false;
    char c = at > begin ? at[-1] : ' ';
    if (is_letter(c) || is_digit(c) || c == '_' || c == '^') return false;
    if (before(begin, at, "^{") || before(begin, at, "_{") || before(begin, at, "^-") ||
        before(begin, at, "^{-"))
        return false;
    for (int turn = 0; turn < 2; turn++) {   /* -$5 and $-5 */
        const char *found = NULL;
        for (int i = 0; i < 2 && !sign && !found; i++) found = sign = before(begin, at, minus[i]);
        for (int i = 0; i < 5 && !found; i++) found = before(begin, at, money[i]);
        if (found) at = found;
    }
    if (!sign) return true;
    c = sign > begin ? sign[-1] : ' ';
    *negative = !(is_letter(c) || is_digit(c) || c == ')' || c == ']' || c == '}');
    return true;
}

/* The first number of the text (`last` false) or the last one. *behind: where it ends. */
static bool find_number(struct Number *out, const char *text, size_t length, bool last,
                        const char **behind) {
    const char *end = text + length;
    bool found = false;
    for (const char *at = text; at < end;) {
        struct Number number;
        bool negative, digit = is_digit(*at);
        const char *next = NULL;
        bool chained = at > text && at[-1] == '/';
        if (digit || *at == '.' || *at == '\\') next = read_number(at, end, chained, &number);
        if (next && may_begin(text, at, &negative)) {
            number.negative ^= negative;
            *out = number, *behind = next;
            found = true;
            if (!last) return true;
        }
        if (next) at = next;
        else at++;
    }
    return found;
}

/* The place behind the last `mark`, or NULL. */
static const char *behind_last(const char *text, size_t length, const char *mark) {
    size_t n = strlen(mark);
    for (size_t i = length; i >= n; i--)
        if (memcmp(text + i - n, mark, n) == 0) return text + i;
    return NULL;
}

/* Where the brace that is open at `at` closes, or NULL. */
static const char *closing(const char *at, const char *end) {
    for (int depth = 1; at < end; at++) {
        if (*at == '\\' && at + 1 < end) at++;
        else if (*at == '{') depth++;
        else if (*at == '}' && --depth == 0) return at;
    }
    return NULL;
}

const char *last_boxed(const char *text, size_t length, size_t *inside) {
    enum { MOST_OPEN = 16 };   /* boxes that never close are looked into, up to this many */
    const char *end = text + length, *found = NULL, *most = NULL;
    int open = 0;
    for (const char *at = text; at < end; at++) {
        const char *begin = *at == '\\' ? after(at, end, "\\boxed{") : NULL;
        if (!begin && *at == '\\') begin = after(at, end, "\\fbox{");
        if (!begin || begin <= most) continue;
        const char *close = closing(begin, end);
        if (!close && ++open > MOST_OPEN) break;
        if (!close) continue;
        found = begin, *inside = (size_t)(close - begin);
        most = close;   /* of a box in a box the outer one is taken */
    }
    return found;
}

bool number_in(struct Number *out, const char *text, size_t length, bool whole) {
    const char *end = text + length, *behind = NULL;
    size_t inside = 0;
    const char *boxed = last_boxed(text, length, &inside);
    const char *marked = behind_last(text, length, "####");
    if (marked && (!boxed || marked > boxed)) {
        if (!find_number(out, marked, (size_t)(end - marked), false, &behind)) return false;
        return whole || behind < end;
    }
    if (boxed) return find_number(out, boxed, inside, true, &behind);
    return whole && find_number(out, text, length, true, &behind);
}
