/* A scorer's line: any bytes give a reply, whose fields are those of its kind. */
#include <math.h>
#include "fuzz.h"
#include "../../llmc/base/text.h"
#include "../../llmc/tasks/scorer_reply.h"

static void fuzz_reply(const uint8_t *data, size_t size) {
    char *line = malloc(size);   /* of its length: nothing behind it may be read */
    if (size) memcpy(line, data, size);
    struct Reply reply = scorer_reply(line, size);
    MUST(reply.kind >= 0 && reply.kind < REPLY_KINDS);
    MUST((reply.kind == REPLY_REWARD) == (bool)isfinite(reply.reward));
    MUST(reply.kind == REPLY_REWARD || isnan(reply.reward));
    bool nameless = reply.kind == REPLY_NOT_JSON || reply.kind == REPLY_NO_ID;
    MUST(nameless ? reply.id == -1 : reply.id >= 0 && reply.id < (int64_t)1 << 53);
    bool goes_on = reply.kind == REPLY_CONTINUE;
    MUST(!goes_on || (reply.role && utf8_is_valid(reply.text, reply.length)));
    if (reply.kind == REPLY_CONTINUE) {
        MUST(strcmp(reply.role, "user") == 0 || strcmp(reply.role, "tool") == 0);
        MUST(utf8_is_valid(reply.text, reply.length));
    }
    free(line);
}

FUZZ_TARGET(fuzz_reply)
