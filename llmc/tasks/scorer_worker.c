#include "scorer_worker.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "../base/console.h"
#include "../base/time.h"

bool worker_start(struct Worker *w, const char *command) {
    return process_start(&w->process, command);
}

void worker_free(struct Worker *w) {
    text_free(&w->out), text_free(&w->in), text_free(&w->said);
}

bool worker_write(struct Worker *w) {
    while (w->written < w->out.length) {
        ssize_t n = process_write(&w->process, w->out.bytes + w->written,
                                  w->out.length - w->written);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN;
        w->written += (size_t)n;
    }
    text_clear(&w->out);
    w->written = 0;
    return true;
}

/* Adds bytes to the line in hand; gives it away where it ends. */
static void add_bytes(struct Worker *w, const char *bytes, size_t count, WorkerLine *line,
                      void *context) {
    for (size_t n; count > 0; bytes += n, count -= n) {
        const char *end = memchr(bytes, '\n', count);
        n = end ? (size_t)(end - bytes) + 1 : count;
        size_t more = end ? n - 1 : n;
        if (!w->passing_over && w->in.length + more > WORKER_LINE) {
            line(context, w, NULL, 0);
            text_clear(&w->in);
            w->passing_over = true;
        }
        if (!w->passing_over) text_append(&w->in, bytes, more);
        if (!end) continue;
        if (!w->passing_over) line(context, w, w->in.bytes, w->in.length);
        w->passing_over = false;
        text_clear(&w->in);
    }
}

bool worker_read(struct Worker *w, size_t *bytes, WorkerLine *line, void *context) {
    char buffer[16384];
    for (size_t got = 0; got < WORKER_TURN;) {
        ssize_t n = read(w->process.out, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN;
        if (n == 0) return false;
        got += (size_t)n, *bytes += (size_t)n;
        add_bytes(w, buffer, (size_t)n, line, context);
    }
    return true;
}

/* ---- standard error -------------------------------------------------------------------------- */

static bool may_speak(struct Voice *voice) {
    enum { AT_ONCE = 20 };
    double now = seconds(), more = voice->since > 0 ? now - voice->since : AT_ONCE;
    voice->allowed += more;
    if (voice->allowed > AT_ONCE) voice->allowed = AT_ONCE;
    voice->since = now;
    if (voice->allowed < 1) {
        voice->hidden++;
        return false;
    }
    voice->allowed -= 1;
    return true;
}

static void show(struct Worker *w, struct Voice *voice) {
    char text[WORKER_SAID + 1];
    size_t n = w->said.length < WORKER_SAID ? w->said.length : WORKER_SAID;
    if (n > 0) memcpy(text, w->said.bytes, n);
    text[n] = 0;
    text_clear(&w->said);
    text_clean(text);
    if (text[strspn(text, " ?")]) strcpy(w->last_said, text);
    if (console_quiet() || !may_speak(voice)) return;
    console_clear();
    fflush(stdout);
    if (voice->hidden > 0)
        fprintf(stderr, "scorer: (%lld more lines were not shown)\n", (long long)voice->hidden);
    voice->hidden = 0;
    fprintf(stderr, "scorer %d: %s\n", w->number, text);
}

void worker_listen(struct Worker *w, struct Voice *voice) {
    char buffer[4096];
    for (size_t got = 0; got < WORKER_TURN && w->process.err >= 0;) {
        ssize_t n = read(w->process.err, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) {   /* closed: poll must not look at it any more */
            close(w->process.err);
            w->process.err = -1;
        }
        if (n <= 0) return;
        got += (size_t)n;
        for (ssize_t i = 0; i < n; i++) {
            if (buffer[i] == '\n') show(w, voice);
            else if (w->said.length < WORKER_SAID) text_append(&w->said, buffer + i, 1);
        }
    }
}

void worker_stop(struct Worker *w, struct Voice *voice) {
    worker_listen(w, voice);
    if (w->said.length > 0) show(w, voice);
    process_kill(&w->process);
    text_clear(&w->out), text_clear(&w->in), text_clear(&w->said);
    w->written = 0;
    w->passing_over = false;
}
