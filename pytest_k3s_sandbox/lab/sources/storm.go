// Opens files, or makes and removes folders, while a storm of signals falls on every thread, and counts what fails.
//
//	storm open COUNT WORKERS STORM FILE ...       COUNT opens (and closes) in all
//	storm statfs COUNT WORKERS STORM FILE ...     COUNT calls of statfs in all
//	storm mkdir COUNT WORKERS STORM FOLDER ...    COUNT folders made and removed in all
//	storm table COUNT WORKERS STORM GROUP PID FILE CALL ...
//	                                              COUNT calls of each kind, on groups made below GROUP for them, so that
//	                                              no name was looked up before; PID is the server, which writes to
//	                                              FILE how many requests it had when it gets SIGUSR1
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
// Prints one line of JSON: {"done": calls, "failures": {"open EINTR": n, ...}, "signals": n, "seconds": s},
// and for a table {"statfs": {"done": calls, "answers": {"EINTR": n, "ok": n}, "requests": {"statfs": n, "lookup": n},
// "signals": n, "seconds": s}, ...}.
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
		t.failures[call+" "+short(err)]++
	}
}

var names = map[error]string{
	syscall.EINTR: "EINTR", syscall.EEXIST: "EEXIST", syscall.ENOENT: "ENOENT", syscall.EBUSY: "EBUSY",
	syscall.ENOTEMPTY: "ENOTEMPTY", syscall.EBADF: "EBADF", syscall.EINVAL: "EINVAL", syscall.EPERM: "EPERM",
	syscall.ENOSYS: "ENOSYS", syscall.EIO: "EIO", syscall.EACCES: "EACCES",
}

func short(err error) string {
	if name, known := names[err]; known {
		return name
	}
	return err.Error()
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

// again opens what is not measured, whatever the signals.
func again(path string, write bool) int {
	flags := syscall.O_RDONLY | syscall.O_CLOEXEC
	if write {
		flags |= syscall.O_WRONLY
	}
	for {
		if fd, err := syscall.Open(path, flags, 0); err == nil {
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

var weathers = map[string]func(*int64, chan struct{}){
	"storm": storm, "process": process, "children": children, "timers": timers, "garbage": garbage,
}

// begin lets a weather begin; the function that it returns ends it, and tells how many signals it made.
func begin(weather string) func() int64 {
	var sent int64
	end, gone := make(chan struct{}), make(chan struct{})
	go func() {
		if work, known := weathers[weather]; known {
			work(&sent, end)
		}
		close(gone)
	}()
	return func() int64 {
		close(end)
		<-gone
		return atomic.LoadInt64(&sent)
	}
}

// answered returns how many requests of each kind the server has answered.
func answered(server int, file string) map[string]int {
	inode := func() uint64 {
		var found syscall.Stat_t
		for syscall.Stat(file, &found) == syscall.EINTR {
		}
		return found.Ino
	}
	for round := 0; round < 2; round++ { // the first may be figures that were gathered before the last request
		old := inode()
		syscall.Kill(server, syscall.SIGUSR1)
		for end := time.Now().Add(10 * time.Second); inode() == old; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				panic("the server writes no figures")
			}
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		panic(err)
	}
	var found struct{ Operations map[string]int }
	if err := json.Unmarshal(text, &found); err != nil {
		panic(err)
	}
	return found.Operations
}

const (
	root         = "/sys/fs/cgroup"
	atCwd        = ^uintptr(99) // AT_FDCWD, -100
	noMagicLinks = 0x02         // linux/openat2.h
	statx        = 332
)

// ground is where the calls of one kind are made: groups that nothing has looked into.
type ground struct {
	base  string
	made  int
	files []string
	cwd   int
}

func (g *ground) group(i int) string { return fmt.Sprintf("%s-%d", g.base, i) }

func (g *ground) make(count int) {
	for ; g.made < count; g.made++ {
		for {
			if err := syscall.Mkdir(g.group(g.made), 0o755); err == nil || err == syscall.EEXIST {
				break
			} else if err != syscall.EINTR {
				panic(err)
			}
		}
	}
}

func (g *ground) remove(count int) {
	for i := 0; i < count; i++ {
		for syscall.Rmdir(g.group(i)) == syscall.EINTR {
		}
	}
}

// file returns a path that no other number has.
func (g *ground) file(i int) string {
	return filepath.Join(g.group(i/len(g.files)), g.files[i%len(g.files)])
}

// readable finds the files of a group that can be read.
func readable(group string) []string {
	var names []string
	entries, err := os.ReadDir(group)
	if err != nil {
		panic(err)
	}
	for _, entry := range entries {
		if _, err := os.ReadFile(filepath.Join(group, entry.Name())); err == nil && !entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names
}

// room is memory of a worker's that stays where it is during its calls.
type room struct {
	path, answer [4096]byte
	fd           int
}

var rooms []*room // keeps them, and on the heap

func closing(fd uintptr, err syscall.Errno) syscall.Errno {
	if err == 0 {
		syscall.Close(int(fd))
	}
	return err
}

// one makes a call of a kind, the i-th of all.
func (g *ground) one(call string, i int, room *room) syscall.Errno {
	text := func(path string) uintptr {
		copy(room.path[:], path+"\x00")
		return uintptr(unsafe.Pointer(&room.path))
	}
	into := uintptr(unsafe.Pointer(&room.answer))
	switch call {
	case "open":
		fd, _, err := syscall.Syscall(syscall.SYS_OPEN, text(g.file(i)), syscall.O_CLOEXEC, 0)
		return closing(fd, err)
	case "openat":
		fd, _, err := syscall.Syscall6(syscall.SYS_OPENAT, atCwd, text(g.file(i)), syscall.O_CLOEXEC, 0, 0, 0)
		return closing(fd, err)
	case "openat2":
		how := openHow{flags: syscall.O_CLOEXEC, resolve: resolveBeneath | noMagicLinks}
		fd, _, err := syscall.Syscall6(openat2, uintptr(g.cwd), text(g.file(i)[len(root)+1:]),
			uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
		return closing(fd, err)
	case "statfs":
		_, _, err := syscall.Syscall(syscall.SYS_STATFS, text(g.file(i)), into, 0)
		return err
	case "stat":
		_, _, err := syscall.Syscall(syscall.SYS_STAT, text(g.file(i)), into, 0)
		return err
	case "lstat":
		_, _, err := syscall.Syscall(syscall.SYS_LSTAT, text(g.file(i)), into, 0)
		return err
	case "newfstatat":
		_, _, err := syscall.Syscall6(syscall.SYS_NEWFSTATAT, atCwd, text(g.file(i)), into, 0, 0, 0)
		return err
	case "statx":
		_, _, err := syscall.Syscall6(statx, atCwd, text(g.file(i)), 0, 0x7ff, into, 0)
		return err
	case "access":
		_, _, err := syscall.Syscall(syscall.SYS_ACCESS, text(g.file(i)), 0, 0)
		return err
	case "faccessat":
		_, _, err := syscall.Syscall(syscall.SYS_FACCESSAT, atCwd, text(g.file(i)), 0)
		return err
	case "readlink":
		_, _, err := syscall.Syscall(syscall.SYS_READLINK, text(g.file(i)), into, 4096)
		return err
	case "unlink":
		_, _, err := syscall.Syscall(syscall.SYS_UNLINK, text(g.file(i)), 0, 0)
		return err
	case "mkdir":
		_, _, err := syscall.Syscall(syscall.SYS_MKDIR, text(g.group(i)), 0o755, 0)
		return err
	case "rmdir":
		_, _, err := syscall.Syscall(syscall.SYS_RMDIR, text(g.group(i)), 0, 0)
		return err
	}
	if call == "close" {
		_, _, err := syscall.Syscall(syscall.SYS_CLOSE, uintptr(again(g.file(i), false)), 0, 0)
		return err
	}
	if room.fd < 0 {
		path := filepath.Join(g.group(0), "notify_on_release")
		if call == "getdents64" {
			path = g.group(0)
		}
		room.fd = again(path, call == "write")
	}
	fd := uintptr(room.fd)
	var err syscall.Errno
	switch call {
	case "fstatfs":
		_, _, err = syscall.Syscall(syscall.SYS_FSTATFS, fd, into, 0)
	case "fstat":
		_, _, err = syscall.Syscall(syscall.SYS_FSTAT, fd, into, 0)
	case "read":
		_, _, err = syscall.Syscall(syscall.SYS_READ, fd, into, 4096)
	case "write":
		_, _, err = syscall.Syscall(syscall.SYS_WRITE, fd, text("0"), 1)
	case "getdents64":
		syscall.Seek(int(fd), 0, 0)
		_, _, err = syscall.Syscall(syscall.SYS_GETDENTS64, fd, into, 4096)
	default:
		panic("no call " + call)
	}
	return err
}

// table makes calls of one kind, and tells what was answered to them and asked of the server.
func table(call, weather string, count, workers int, groups string, server int, file string, files []string) any {
	g := &ground{base: fmt.Sprintf("%s/table-%d-%s", groups, os.Getpid(), call), files: files, cwd: again(root, false)}
	fresh := count/len(files) + 1
	if call == "mkdir" || call == "rmdir" { // rmdir removes what mkdir has made
		fresh, g.base = 0, fmt.Sprintf("%s/table-%d", groups, os.Getpid())
	}
	g.make(fresh)
	before, began := answered(server, file), time.Now()
	end := begin(weather)
	var next int64
	var lock sync.Mutex
	var group sync.WaitGroup
	answers := map[string]int{}
	for worker := 0; worker < workers; worker++ {
		group.Add(1)
		mine := &room{fd: -1}
		rooms = append(rooms, mine)
		go func() {
			defer group.Done()
			runtime.LockOSThread()
			defer func() { syscall.Close(mine.fd) }()
			for {
				i := int(atomic.AddInt64(&next, 1)) - 1
				if i >= count {
					return
				}
				name := "ok"
				if err := g.one(call, i, mine); err != 0 {
					name = short(err)
				}
				lock.Lock()
				answers[name]++
				lock.Unlock()
			}
		}()
	}
	group.Wait()
	seconds := time.Since(began).Seconds()
	sent := end()
	requests := map[string]int{}
	for name, number := range answered(server, file) {
		if number > before[name] {
			requests[name] = number - before[name]
		}
	}
	g.remove(fresh)
	syscall.Close(g.cwd)
	return map[string]any{"done": count, "answers": answers, "requests": requests, "signals": sent, "seconds": seconds}
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
	if os.Args[1] == "table" {
		groups, file := os.Args[5], os.Args[7]
		server, _ := strconv.Atoi(os.Args[6])
		first := &ground{base: fmt.Sprintf("%s/table-%d-first", groups, os.Getpid())}
		first.make(1)
		files := readable(first.group(0))
		first.remove(1)
		found := map[string]any{}
		for _, call := range os.Args[8:] {
			found[call] = table(call, os.Args[4], count, workers, groups, server, file, files)
		}
		json.NewEncoder(os.Stdout).Encode(found)
		return
	}
	t := &tally{failures: map[string]int{}}
	began := time.Now()
	end := begin(os.Args[4])
	var group sync.WaitGroup
	for worker := 0; worker < workers; worker++ {
		group.Add(1)
		go func(worker int) {
			defer group.Done()
			work(os.Args[1], worker, count/workers, os.Args[5:], t)
		}(worker)
	}
	group.Wait()
	seconds := time.Since(began).Seconds()
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"done": t.done, "failures": t.failures, "signals": end(), "seconds": seconds,
	})
}
