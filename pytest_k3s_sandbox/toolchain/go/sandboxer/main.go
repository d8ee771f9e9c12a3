// Command k3s-sandboxer holds the namespaces of pods and runs their containers: containerd's sandbox
// controller (containerd.services.sandbox.v1) and the task services of its own shim for runc, in one process.
//
// containerd otherwise starts two programs for each pod (the shim, twice) and a container that only holds
// namespaces (pause), which takes another four runs of the OCI runtime. Where starting a program is dear,
// as in gVisor, that is more than half of a pod's price. Here a thread holds the namespaces of a pod.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	sandbox "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/plugins"
	runc "github.com/containerd/go-runc"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"google.golang.org/grpc"
)

// manager refuses what a shim does at the order of containerd: this process is started once, by hand.
type manager struct{}

var errNoShim = errors.New("this is no shim: start it once, before the first pod")

func (manager) Name() string { return "io.containerd.runc.v2" }

func (manager) Start(context.Context, string, shim.StartOpts) (shim.BootstrapParams, error) {
	return shim.BootstrapParams{}, errNoShim
}

func (manager) Stop(context.Context, string) (shim.StopStatus, error) {
	return shim.StopStatus{}, errNoShim
}

func (manager) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) { return nil, errNoShim }

// lasting is the shutdown service of a process that does not end with its last container.
type lasting struct{}

func (lasting) Shutdown()                                    {}
func (lasting) RegisterCallback(func(context.Context) error) {}
func (lasting) Done() <-chan struct{}                        { return nil }
func (lasting) Err() error                                   { return nil }

func register(tasks, controller, root, state string) {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			if err := serve(controller, newPods("ttrpc+unix://"+tasks, root, state)); err != nil {
				return nil, err
			}
			made, err := newTasks(min(2*runtime.NumCPU(), maxServices), func() (api.TTRPCTaskService, error) {
				return task.NewTaskService(ic.Context, publisher.(shim.Publisher), lasting{})
			})
			runc.Monitor = newCommands() // each of the services has set another one
			return made, err
		},
	})
}

// maxServices bounds the task services: each has two threads, which wait for consoles and for groups' events.
const maxServices = 8

func serve(path string, pods *pods) error {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	sandbox.RegisterControllerServer(server, pods)
	go func() {
		fmt.Fprintln(os.Stderr, "k3s-sandboxer:", server.Serve(listener))
		os.Exit(1)
	}()
	return nil
}

// version is that of containerd's modules, set by the linker.
var version = "unknown"

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "--version":
		fmt.Printf("k3s-sandboxer version %s\n", version)
	case len(os.Args) == 2 && os.Args[1] == "pause":
		fail(pause())
	case len(os.Args) == 5:
		fail(run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]))
	default:
		fail(errors.New("usage: k3s-sandboxer FOLDER CRI_ROOT CRI_STATE CONTAINERD_SOCKET"))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "k3s-sandboxer:", err)
		os.Exit(1)
	}
}

// run writes its number to pid, and serves tasks.sock (ttrpc) and controller.sock (gRPC) in a folder; root and state are those of containerd's
// CRI plugin. Its events go to the address in the variable TTRPC_ADDRESS, as a shim's do.
func run(folder, root, state, containerd string) error {
	tasks, controller := folder+"/tasks.sock", folder+"/controller.sock"
	for _, socket := range []string{tasks, controller} {
		if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if err := os.WriteFile(folder+"/pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	register(tasks, controller, root, state)
	os.Args = []string{os.Args[0], "-namespace", "k8s.io", "-id", "pods", "-address", containerd, "-socket", tasks}
	shim.Run(context.Background(), manager{}, func(config *shim.Config) {
		config.NoSetupLogger, config.NoReaper = true, true
	})
	return nil
}
