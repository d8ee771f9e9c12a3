// Opens files, or makes and removes folders, while a storm of signals falls on every thread, and counts what fails.
//
//	storm open COUNT WORKERS STORM FILE ...       COUNT opens (and closes) in all
//	storm statfs COUNT WORKERS STORM FILE ...     COUNT calls of statfs in all
//	storm openat2 COUNT WORKERS STORM FILE ...    COUNT opens beneath the descriptor of the file's folder, RESOLVE_BENEATH
//	storm fstatfs COUNT WORKERS STORM FILE ...    COUNT calls of fstatfs in all
//	storm fresh COUNT WORKERS STORM FOLDER ...    COUNT folders made, a file in each opened twice by names not seen before,
//	                                              and removed
//	storm mkdir COUNT WORKERS STORM FOLDER ...    COUNT folders made and removed in all
//
// STORM is one of
//
//	quiet     nothing
//	storm     SIGUSR1 and SIGURG to every thread in turn, as fast as one goroutine can
//	process   SIGUSR1 to the process by kill(2), which one thread may be interrupted by and another one take
//	children  children that end at once, one after the other: SIGCHLD
//	timers    a SIGALRM to the process every 200 microseconds, setitimer(2)
//	garbage   garbage collections without a pause, which interrupt goroutines by SIGURG
//
// Go restarts no system call of its own accord beyond what package os does, so calls are made by package syscall.
// Prints one line of JSON: {"done": calls, "failures": {"open EINTR": n, ...}, "signals": n, "seconds": s}.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
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

func process(sent *int64, end chan struct{}) {
	for {
		select {
		case <-end:
			return
		default:
			syscall.Kill(os.Getpid(), syscall.SIGUSR1)
			atomic.AddInt64(sent, 1)
		}
	}
}

func children(sent *int64, end chan struct{}) {
	for {
		select {
		case <-end:
			return
		default:
			if exec.Command("/bin/true").Run() == nil {
				atomic.AddInt64(sent, 1)
			}
		}
	}
}

func timers(sent *int64, end chan struct{}) {
	alarms := make(chan os.Signal, 1)
	signal.Notify(alarms, syscall.SIGALRM)
	value := [4]int64{0, 200, 0, 200} // struct itimerval: interval and first, each seconds and microseconds
	syscall.RawSyscall(syscall.SYS_SETITIMER, 0, uintptr(unsafe.Pointer(&value)), 0)
	for {
		select {
		case <-end:
			value = [4]int64{}
			syscall.RawSyscall(syscall.SYS_SETITIMER, 0, uintptr(unsafe.Pointer(&value)), 0)
			return
		case <-alarms:
			atomic.AddInt64(sent, 1)
		}
	}
}

func garbage(sent *int64, end chan struct{}) {
	for {
		select {
		case <-end:
			return
		default:
			runtime.GC()
			atomic.AddInt64(sent, 1)
		}
	}
}

type openHow struct{ flags, mode, resolve uint64 }

const (
	openat2        = 437
	resolveBeneath = 0x08 // linux/openat2.h
)

func beneath(folder int, name string) (int, error) {
	how := openHow{flags: syscall.O_RDONLY | syscall.O_CLOEXEC, resolve: resolveBeneath}
	text, _ := syscall.BytePtrFromString(name)
	fd, _, err := syscall.Syscall6(openat2, uintptr(folder), uintptr(unsafe.Pointer(text)),
		uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
	if err != 0 {
		return -1, err
	}
	return int(fd), nil
}

// again opens what is not measured, whatever the signals.
func again(path string) int {
	for {
		if fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err == nil {
			return fd
		} else if err != syscall.EINTR {
			panic(path + ": " + err.Error())
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
		if kind == "openat2" {
			folder := again(filepath.Dir(target))
			fd, err := beneath(folder, filepath.Base(target))
			t.note("openat2", err)
			if err == nil {
				syscall.Close(fd)
			}
			syscall.Close(folder)
			continue
		}
		if kind == "fstatfs" {
			fd := again(target)
			var answer syscall.Statfs_t
			t.note("fstatfs", syscall.Fstatfs(fd, &answer))
			syscall.Close(fd)
			continue
		}
		if kind == "fresh" {
			name := fmt.Sprintf("storm-%d-%d-%d", os.Getpid(), worker, i)
			if os.Mkdir(filepath.Join(target, name), 0o755) != nil {
				panic("mkdir")
			}
			folder := again(target)
			for _, file := range []string{"tasks", "cgroup.procs"} {
				var fd int
				var err error
				if file == "tasks" {
					fd, err = beneath(folder, name+"/"+file)
					t.note("openat2", err)
				} else {
					fd, err = syscall.Open(filepath.Join(target, name, file), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
					t.note("open", err)
				}
				if err == nil {
					syscall.Close(fd)
				}
			}
			syscall.Close(folder)
			os.Remove(filepath.Join(target, name))
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
	weathers := map[string]func(*int64, chan struct{}){
		"storm": storm, "process": process, "children": children, "timers": timers, "garbage": garbage,
	}
	if weather, known := weathers[os.Args[4]]; known {
		go weather(&sent, end)
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
