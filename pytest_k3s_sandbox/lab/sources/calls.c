/*
 * Times system calls of its own, so that a tracer's start is not in the figures.
 *
 *   calls SECONDS STATFS_PATH MISS_PATH MATCH_PATH PROGRAM   every case, about SECONDS each; "-": no program
 *   calls once PROGRAM [ARGUMENT ...]                        one fork, exec and wait
 *
 * Prints lines of JSON: a case with its count and seconds, what was seen (f_type, and the first byte of
 * MATCH_PATH), and what its parent, the tracer if there is one, has used.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WINDOWS = 5 };

static const char *statfs_path, *open_path, *program[2];
static int read_fd;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void untrapped(void)
{
	syscall(SYS_getppid);
}

static void read_page(void)
{
	static char page[4096];
	if (pread(read_fd, page, sizeof page, 0) != sizeof page)
		fail("pread");
}

static void ask_statfs(void)
{
	struct statfs answer;
	if (syscall(SYS_statfs, statfs_path, &answer))
		fail(statfs_path);
}

static void open_and_close(void)
{
	long fd = syscall(SYS_openat, AT_FDCWD, open_path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail(open_path);
	syscall(SYS_close, fd);
}

static void run(const char *const *argv)
{
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		execvp(argv[0], (char *const *)argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
		fprintf(stderr, "%s: status %#x\n", argv[0], pid < 0 ? -1 : status);
		exit(1);
	}
}

static void run_program(void)
{
	run(program);
}

/*
 * Of WINDOWS times of equal length the fastest counts: gVisor changes between spinning and sleeping by itself,
 * which changes a call's cost fivefold, and the machine is not ours alone.
 */
static void measure(const char *name, void (*once)(void), int batch, double seconds)
{
	long count, best_count = 0;
	double begin, end, best = 0;
	once();
	for (int window = 0; window < WINDOWS; window++) {
		count = 0;
		begin = now();
		do {
			for (int i = 0; i < batch; i++)
				once();
			count += batch;
			end = now();
		} while (end - begin < seconds / WINDOWS);
		if (!best_count || (end - begin) / count < best / best_count) {
			best_count = count;
			best = end - begin;
		}
	}
	printf("{\"case\": \"%s\", \"count\": %ld, \"seconds\": %.9f}\n", name, best_count, best);
}

static void show_seen(const char *match)
{
	struct statfs answer;
	char byte = '?';
	int fd = open(match, O_RDONLY);
	if (fd < 0 || read(fd, &byte, 1) != 1)
		fail(match);
	close(fd);
	if (syscall(SYS_statfs, statfs_path, &answer))
		fail(statfs_path);
	printf("{\"f_type\": %ld, \"byte\": \"%c\"}\n", (long)answer.f_type, byte);
}

/* The memory and the processor time of our parent: proc_pid_status(5), proc_pid_stat(5). */
static void show_parent(void)
{
	char path[64], line[1024], *field;
	long rss = 0, high = 0;
	unsigned long user = 0, kernel = 0;
	FILE *file;
	snprintf(path, sizeof path, "/proc/%d/status", getppid());
	file = fopen(path, "r");
	while (file && fgets(line, sizeof line, file)) {
		sscanf(line, "VmRSS: %ld", &rss);
		sscanf(line, "VmHWM: %ld", &high);
	}
	if (file)
		fclose(file);
	snprintf(path, sizeof path, "/proc/%d/stat", getppid());
	file = fopen(path, "r");
	if (file && fgets(line, sizeof line, file) && (field = strrchr(line, ')')))
		sscanf(field + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel);
	if (file)
		fclose(file);
	printf("{\"parent\": {\"rss_kib\": %ld, \"cpu_seconds\": %.2f}}\n", high > rss ? high : rss,
	       (double)(user + kernel) / sysconf(_SC_CLK_TCK));
}

int main(int argc, char **argv)
{
	double seconds, begin;
	if (argc > 2 && !strcmp(argv[1], "once")) {
		begin = now();
		run((const char *const *)argv + 2);
		printf("{\"case\": \"once\", \"count\": 1, \"seconds\": %.9f}\n", now() - begin);
		show_parent();
		return 0;
	}
	if (argc != 6) {
		fprintf(stderr, "see the head of calls.c\n");
		return 2;
	}
	seconds = atof(argv[1]);
	statfs_path = argv[2];
	program[0] = argv[5];
	measure("untrapped", untrapped, 64, seconds);
	read_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	measure("read", read_page, 64, seconds);
	measure("statfs", ask_statfs, 16, seconds);
	open_path = argv[3];
	measure("open", open_and_close, 16, seconds);
	open_path = argv[4];
	measure("open-match", open_and_close, 16, seconds);
	if (strcmp(argv[5], "-"))
		measure("spawn", run_program, 4, 2 * seconds);
	show_seen(argv[4]);
	show_parent();
	return 0;
}
