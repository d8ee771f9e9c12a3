// Names paths to the kernel, by package syscall alone, and prints one line for each word of its command line.
//
//	many=N=PATH  opens PATH N times, and makes as many calls of other kinds on it
//	read=PATH    opens PATH and prints what it reads
//	cd=PATH      changes the working directory
//	at=DIR=PATH  as read, with a descriptor of DIR
//	nil          opens a path at address 0
//	low          opens a path at address 8
//	gone         opens a path in memory that was given back
//	ends         opens a path that runs into such memory
//	far          opens a path at an address that no memory can have
//	file         opens a path behind the end of a mapped file, where reading is a SIGBUS
//	panic        reads at address 8 in Go, and goes on after the panic
//	fifo=PATH    opens a FIFO while each thread gets signals, until there is a writer
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const page = 4096

func text(fd int, err error) string {
	if err != nil {
		return err.(syscall.Errno).Error()
	}
	defer syscall.Close(fd)
	into := make([]byte, 100)
	n, err := syscall.Read(fd, into)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(into[:n]))
}

// AT_FDCWD of linux/fcntl.h; package syscall keeps it for itself.
var here = -100

// open opens a path at an address; nothing but the kernel looks at it.
func open(at uintptr) string {
	_, _, err := syscall.Syscall6(syscall.SYS_OPENAT, uintptr(here), at, 0, 0, 0, 0)
	if err == 0 {
		return "opened"
	}
	return err.Error()
}

func mapped(length int, fd int, flags int) uintptr {
	at, _, err := syscall.Syscall6(syscall.SYS_MMAP, 0, uintptr(length), syscall.PROT_READ|syscall.PROT_WRITE,
		uintptr(flags), uintptr(fd), 0)
	if err != 0 {
		panic(err)
	}
	return at
}

// before returns the address of a text, and memory that is not there follows it.
func before(text string) uintptr {
	at := mapped(2*page, -1, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if _, _, err := syscall.Syscall(syscall.SYS_MUNMAP, at+page, page, 0); err != 0 {
		panic(err)
	}
	start := at + page - uintptr(len(text))
	for i := 0; i < len(text); i++ {
		*(*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&[]uintptr{start + uintptr(i)}[0]))) = text[i]
	}
	return start
}

func behindFile() uintptr {
	file, err := os.CreateTemp("", "paths")
	if err != nil {
		panic(err)
	}
	defer os.Remove(file.Name())
	return mapped(page, int(file.Fd()), syscall.MAP_SHARED)
}

func panics() (what string) {
	defer func() { what = fmt.Sprint(recover()) }()
	address := uintptr(8)
	return fmt.Sprint(**(**int)(unsafe.Pointer(&address)))
}

func many(count int, path string) string {
	var stat syscall.Stat_t
	for i := 0; i < count; i++ {
		fd, err := syscall.Open(path, syscall.O_RDONLY, 0)
		if err != nil {
			return err.Error()
		}
		syscall.Close(fd)
		if err := syscall.Stat(path, &stat); err != nil {
			return err.Error()
		}
		if err := syscall.Access(path, 4); err != nil {
			return err.Error()
		}
	}
	return "ok"
}

func fifo(path string) string {
	runtime.LockOSThread()
	process, thread := os.Getpid(), syscall.Gettid()
	got := make(chan os.Signal, 1000)
	signal.Notify(got, syscall.SIGUSR1)
	go func() {
		for i := 0; i < 20; i++ {
			time.Sleep(10 * time.Millisecond)
			syscall.Tgkill(process, thread, syscall.SIGUSR1)
		}
		os.OpenFile(path, os.O_WRONLY, 0)
	}()
	fd, err := syscall.Open(path, syscall.O_RDONLY, 0)
	if err == nil && len(got) == 0 {
		return "no signal"
	}
	syscall.Close(fd)
	return fmt.Sprint(err)
}

func one(word string) string {
	what, rest, _ := strings.Cut(word, "=")
	switch what {
	case "many":
		count, path, _ := strings.Cut(rest, "=")
		number, err := strconv.Atoi(count)
		if err != nil {
			panic(err)
		}
		return many(number, path)
	case "read":
		return text(syscall.Open(rest, syscall.O_RDONLY, 0))
	case "cd":
		return fmt.Sprint(syscall.Chdir(rest))
	case "at":
		folder, path, _ := strings.Cut(rest, "=")
		fd, err := syscall.Open(folder, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
		if err != nil {
			return err.Error()
		}
		defer syscall.Close(fd)
		return text(syscall.Openat(fd, path, syscall.O_RDONLY, 0))
	case "nil":
		return open(0)
	case "low":
		return open(8)
	case "gone":
		return open(before("") + 16)
	case "ends":
		return open(before("/etc/hostname"))
	case "far":
		return open(1 << 62)
	case "file":
		return open(behindFile())
	case "panic":
		return panics()
	case "fifo":
		return fifo(rest)
	}
	panic(word)
}

func main() {
	for _, word := range os.Args[1:] {
		fmt.Println(one(word))
	}
}
