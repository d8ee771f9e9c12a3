package main

import (
	"context"
	"sync"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// tasks is one task service that is made of several: each container belongs to one of them.
//
// A task service of containerd's shim answers nothing while it creates a container, since it was made for the
// containers of one pod. With one service for all pods, thirty that are created at once wait for each other:
// none starts before the last one is created.
type tasks struct {
	services []task.TTRPCTaskService
	mutex    sync.Mutex
	creating []int          // how many containers a service is creating
	of       map[string]int // the service of a container
}

// newTasks returns a service that is made of count services.
func newTasks(count int, one func() (task.TTRPCTaskService, error)) (*tasks, error) {
	t := &tasks{creating: make([]int, count), of: map[string]int{}}
	for range count {
		service, err := one()
		if err != nil {
			return nil, err
		}
		t.services = append(t.services, service)
	}
	return t, nil
}

// RegisterTTRPC is what containerd's shim calls to have a service served.
func (t *tasks) RegisterTTRPC(server *ttrpc.Server) error {
	task.RegisterTTRPCTaskService(server, t)
	return nil
}

// at returns the service of a container. Any of them answers that it does not know a container.
func (t *tasks) at(id string) task.TTRPCTaskService {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return t.services[t.of[id]]
}

// begin chooses the service for a container that is to be created: the one that creates the fewest now. A
// name that is in use stays where it is.
func (t *tasks) begin(id string) (chosen int, inUse bool) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	chosen, inUse = t.of[id]
	for number, count := range t.creating {
		if !inUse && count < t.creating[chosen] {
			chosen = number
		}
	}
	t.creating[chosen]++
	t.of[id] = chosen
	return chosen, inUse
}

// Create implements the task service.
func (t *tasks) Create(ctx context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	chosen, inUse := t.begin(r.ID)
	answer, err := t.services[chosen].Create(ctx, r)
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.creating[chosen]--
	if err != nil && !inUse {
		delete(t.of, r.ID)
	}
	return answer, err
}

// Delete implements the task service.
func (t *tasks) Delete(ctx context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	answer, err := t.at(r.ID).Delete(ctx, r)
	if err == nil && r.ExecID == "" {
		t.mutex.Lock()
		defer t.mutex.Unlock()
		delete(t.of, r.ID)
	}
	return answer, err
}

// State implements the task service.
func (t *tasks) State(ctx context.Context, r *task.StateRequest) (*task.StateResponse, error) {
	return t.at(r.ID).State(ctx, r)
}

// Start implements the task service.
func (t *tasks) Start(ctx context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	return t.at(r.ID).Start(ctx, r)
}

// Pids implements the task service.
func (t *tasks) Pids(ctx context.Context, r *task.PidsRequest) (*task.PidsResponse, error) {
	return t.at(r.ID).Pids(ctx, r)
}

// Pause implements the task service.
func (t *tasks) Pause(ctx context.Context, r *task.PauseRequest) (*emptypb.Empty, error) {
	return t.at(r.ID).Pause(ctx, r)
}

// Resume implements the task service.
func (t *tasks) Resume(ctx context.Context, r *task.ResumeRequest) (*emptypb.Empty, error) {
	return t.at(r.ID).Resume(ctx, r)
}

// Checkpoint implements the task service.
func (t *tasks) Checkpoint(ctx context.Context, r *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return t.at(r.ID).Checkpoint(ctx, r)
}

// Kill implements the task service.
func (t *tasks) Kill(ctx context.Context, r *task.KillRequest) (*emptypb.Empty, error) {
	return t.at(r.ID).Kill(ctx, r)
}

// Exec implements the task service.
func (t *tasks) Exec(ctx context.Context, r *task.ExecProcessRequest) (*emptypb.Empty, error) {
	return t.at(r.ID).Exec(ctx, r)
}

// ResizePty implements the task service.
func (t *tasks) ResizePty(ctx context.Context, r *task.ResizePtyRequest) (*emptypb.Empty, error) {
	return t.at(r.ID).ResizePty(ctx, r)
}

// CloseIO implements the task service.
func (t *tasks) CloseIO(ctx context.Context, r *task.CloseIORequest) (*emptypb.Empty, error) {
	return t.at(r.ID).CloseIO(ctx, r)
}

// Update implements the task service.
func (t *tasks) Update(ctx context.Context, r *task.UpdateTaskRequest) (*emptypb.Empty, error) {
	return t.at(r.ID).Update(ctx, r)
}

// Wait implements the task service.
func (t *tasks) Wait(ctx context.Context, r *task.WaitRequest) (*task.WaitResponse, error) {
	return t.at(r.ID).Wait(ctx, r)
}

// Stats implements the task service.
func (t *tasks) Stats(ctx context.Context, r *task.StatsRequest) (*task.StatsResponse, error) {
	return t.at(r.ID).Stats(ctx, r)
}

// Connect implements the task service.
func (t *tasks) Connect(ctx context.Context, r *task.ConnectRequest) (*task.ConnectResponse, error) {
	return t.at(r.ID).Connect(ctx, r)
}

// Shutdown implements the task service.
func (t *tasks) Shutdown(ctx context.Context, r *task.ShutdownRequest) (*emptypb.Empty, error) {
	return t.at(r.ID).Shutdown(ctx, r)
}
