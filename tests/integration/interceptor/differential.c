/*
 * Makes the system calls that it is told, and says what each gave: the program of test_differential.py.
 *
 * Reads requests from standard input, a line each, and answers on standard output:
 *
 *   worker m|t|f     what follows is done by the example's main thread, by a thread, by a forked child
 *   NUMBER WORD ...  a system call; its arguments are words, see value()
 *   go               do it all, in a process of its own; answers with lines
 *                    "worker TID" and "RESULT ERRNO HEX", HEX being what the call wrote, and "end"
 *
 * It makes no call of its own that strace or the interceptor is asked to look at.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 8, CALLS = 64, LINE = 16384, ANSWER = 1 << 18, PAGE = 4096, SLOTS = 8, OUT = 4096 };

struct worker {
	char kind;
	int count;
	char lines[CALLS][LINE];
};

struct place { /* what one worker writes to while it works */
	char *pages;	/* three pages, of which the last cannot be touched */
	char out[OUT];
	unsigned long long how[3];
	long slots[SLOTS];
	int written;	/* bytes of out to show */
};

static struct worker workers[WORKERS];
static int count;
static char (*answers)[ANSWER]; /* shared with the processes that fill them */

static int unhex(const char *text, char *to)
{
	int length = 0;
	unsigned byte;
	while (sscanf(text + 2 * length, "%2x", &byte) == 1)
		to[length++] = byte;
	return length;
}

/* Where a path lies: n at a page's begin, x across a boundary, e right before the end of the memory, u there without its end. */
static char *put_path(struct place *place, char where, const char *hex)
{
	static __thread char path[2 * PAGE];
	int length = unhex(hex, path);
	char *end = place->pages + 2 * PAGE, *at = place->pages;
	path[length] = 0;
	if (where == 'x')
		at = place->pages + PAGE - length / 2 - 1;
	else if (where == 'e')
		at = end - length - 1;
	else if (where == 'u')
		at = end - length;
	memcpy(at, path, where == 'u' ? length : length + 1);
	return at;
}

static long value(struct place *place, char *word)
{
	unsigned long long *how = place->how;
	switch (word[0]) {
	case 'i': /* a number */
		return strtol(word + 2, NULL, 0);
	case 's': /* a descriptor that an earlier call gave */
		return place->slots[word[2] - '0'];
	case 'p': /* a path: where it lies, and its bytes in hexadecimal */
		return (long)put_path(place, word[2], word + 4);
	case 'b': /* memory for an answer of so many bytes; 0: as many as the call returns */
		place->written = atoi(word + 2);
		return (long)place->out;
	case 'h': /* struct open_how */
		sscanf(word + 2, "%llu,%llu,%llu", &how[0], &how[1], &how[2]);
		return (long)how;
	case 't':
		return syscall(SYS_gettid);
	default:
		return getpid();
	}
}

static char *make_call(struct place *place, char *line, char *answer)
{
	long arguments[6] = { 0 }, result;
	int number, used = 0, slot = -1, error;
	char *rest, *word = strtok_r(line, " \n", &rest);
	number = atoi(word);
	place->written = -1;
	memset(place->out, 0, sizeof place->out);
	while ((word = strtok_r(NULL, " \n", &rest)))
		if (word[0] == '>')
			slot = word[1] - '0';
		else if (used < 6)
			arguments[used++] = value(place, word);
	errno = 0;
	result = syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
	error = errno;
	if (slot >= 0)
		place->slots[slot] = result;
	/* What is closed may at once be another thread's: nobody can say what a call on that number gives. */
	for (int i = 0; number == SYS_close && i < SLOTS; i++)
		if (place->slots[i] == arguments[0])
			place->slots[i] = -1;
	answer += sprintf(answer, "%ld %d ", result, result == -1 ? error : 0);
	if (result != -1 && place->written >= 0)
		for (int i = 0; i < (place->written ? place->written : result); i++)
			answer += sprintf(answer, "%02x", (unsigned char)place->out[i]);
	return answer + sprintf(answer, ".\n");
}

static void *work(void *argument)
{
	long index = (long)argument;
	struct place place = { .written = -1 };
	char *answer = answers[index];
	place.pages = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(place.pages + 2 * PAGE, PAGE, PROT_NONE);
	memset(place.slots, 0xff, sizeof place.slots);
	unshare(CLONE_FS); /* a working directory of its own, also for a thread */
	answer += sprintf(answer, "worker %ld\n", (long)syscall(SYS_gettid));
	for (int i = 0; i < workers[index].count; i++)
		answer = make_call(&place, workers[index].lines[i], answer);
	munmap(place.pages, 3 * PAGE);
	return NULL;
}

static void example(void)
{
	pthread_t threads[WORKERS];
	pid_t children[WORKERS];
	for (long i = 1; i < count; i++)
		if (workers[i].kind == 'f' && (children[i] = fork()) == 0) {
			work((void *)i);
			_exit(0);
		} else if (workers[i].kind == 't')
			pthread_create(&threads[i], NULL, work, (void *)i);
	work((void *)0);
	for (int i = 1; i < count; i++)
		if (workers[i].kind == 'f')
			waitpid(children[i], NULL, 0);
		else
			pthread_join(threads[i], NULL);
	_exit(0);
}

static void on_signal(int number)
{
	(void)number;
}

int main(void)
{
	static char line[LINE];
	size_t size = WORKERS * sizeof *answers;
	signal(SIGUSR1, on_signal);
	answers = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	while (fgets(line, sizeof line, stdin)) {
		if (!strncmp(line, "worker ", 7) && count < WORKERS) {
			workers[count].kind = line[7];
			workers[count++].count = 0;
		} else if (strcmp(line, "go\n") && count && workers[count - 1].count < CALLS) {
			strcpy(workers[count - 1].lines[workers[count - 1].count++], line);
		} else {
			int status;
			pid_t pid = fork();
			if (pid == 0)
				example();
			waitpid(pid, &status, 0);
			for (int i = 0; i < count; i++)
				fputs(answers[i], stdout);
			printf("end %d\n", status);
			fflush(stdout);
			for (int i = 0; i < count; i++)
				answers[i][0] = 0;
			count = 0;
		}
	}
	return 0;
}
