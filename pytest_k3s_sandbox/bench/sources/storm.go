// Opens files, or makes and removes folders, while a storm of signals falls on every thread, and counts what fails.
//
//	storm open COUNT WORKERS STORM FILE ...       COUNT opens (and closes) in all
//	storm statfs COUNT WORKERS STORM FILE ...     COUNT calls of statfs in all
//	storm mkdir COUNT WORKERS STORM FOLDER ...    COUNT folders made and removed in all
//
// STORM is "quiet" or "storm": SIGUSR1 and SIGURG to every thread in turn, as fast as one goroutine can.
// Go restarts no system call of its own accord beyond what package os does, so calls are made by package syscall.
// Prints one line of JSON: {"done": calls, "failures": {"open EINTR": n, ...}, "signals": n, "seconds": s}.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type tally struct {
	sync.Mutex
	failures map[string]int
	done     int
}

func (t *tally) note(call string, err error) {
	t.Lock()
	defer t.Unlock()
	t.done++
	if err != nil {
		name := err.Error()
		for number, short := range map[syscall.Errno]string{
			syscall.EINTR: "EINTR", syscall.EEXIST: "EEXIST", syscall.ENOENT: "ENOENT",
			syscall.EBUSY: "EBUSY", syscall.ENOTEMPTY: "ENOTEMPTY", syscall.EBADF: "EBADF",
		} {
			if err == number {
				name = short
			}
		}
		t.failures[call+" "+name]++
	}
}

func storm(sent *int64, end chan struct{}) {
	pid := os.Getpid()
	for {
		threads, _ := os.ReadDir("/proc/self/task")
		for round := 0; round < 50; round++ {
			for _, thread := range threads {
				tid, _ := strconv.Atoi(thread.Name())
				for _, number := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGURG} {
					syscall.Syscall(syscall.SYS_TGKILL, uintptr(pid), uintptr(tid), uintptr(number))
					atomic.AddInt64(sent, 1)
				}
			}
			select {
			case <-end:
				return
			default:
			}
		}
	}
}

func work(kind string, worker, count int, targets []string, t *tally) {
	runtime.LockOSThread()
	for i := 0; i < count; i++ {
		target := targets[(worker+i)%len(targets)]
		if kind == "open" {
			fd, err := syscall.Open(target, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
			t.note("open", err)
			if err == nil {
				t.note("close", syscall.Close(fd))
			}
			continue
		}
		if kind == "statfs" {
			var answer syscall.Statfs_t
			t.note("statfs", syscall.Statfs(target, &answer))
			continue
		}
		folder := filepath.Join(target, fmt.Sprintf("storm-%d-%d", worker, i))
		t.note("mkdir", syscall.Mkdir(folder, 0o755))
		t.note("rmdir", syscall.Rmdir(folder))
	}
}

func main() {
	if len(os.Args) < 6 {
		fmt.Fprintln(os.Stderr, "see the head of storm.go")
		os.Exit(2)
	}
	count, _ := strconv.Atoi(os.Args[2])
	workers, _ := strconv.Atoi(os.Args[3])
	received := make(chan os.Signal, 1)
	signal.Notify(received, syscall.SIGUSR1)
	go func() {
		for range received {
		}
	}()
	var sent int64
	end := make(chan struct{})
	t := &tally{failures: map[string]int{}}
	begin := time.Now()
	if os.Args[4] == "storm" {
		go storm(&sent, end)
	}
	var group sync.WaitGroup
	for worker := 0; worker < workers; worker++ {
		group.Add(1)
		go func(worker int) {
			defer group.Done()
			work(os.Args[1], worker, count/workers, os.Args[5:], t)
		}(worker)
	}
	group.Wait()
	close(end)
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"done": t.done, "failures": t.failures, "signals": atomic.LoadInt64(&sent),
		"seconds": time.Since(begin).Seconds(),
	})
}
