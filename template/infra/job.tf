# The Cloud Run jobs: one for each folder of the project with tasks and a `job.py`. Terraform creates
# them with an image of Google's that does nothing; `just deploy-job` builds theirs from the bundle.

variable "job_name" {
  description = "Name of the first job: that of the folder `first_folder` in main.tf. The names of further jobs start with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,47}[a-z0-9])?$", var.job_name))
    error_message = "job_name must have at most 49 lowercase letters, digits or hyphens, and start with a letter."
  }
}

variable "job_timeout" {
  description = "For how long a task may run, in seconds. Dagster sets it for each execution: that of the first job, unless the asset has its own. A task with a GPU may run for an hour, so 3570 seconds."
  type        = number
  default     = 86400

  validation {
    condition     = var.job_timeout >= 1 && var.job_timeout <= 604770
    error_message = "job_timeout must be 1 to 604770 seconds: seven days, but for half a minute that Dagster adds."
  }
}

variable "job_parallelism" {
  description = "How many tasks of an execution run at the same time. 0 means as many as Google allows."
  type        = number
  default     = 10

  validation {
    condition     = var.job_parallelism >= 0
    error_message = "job_parallelism must be 0 or more."
  }
}

variable "job_memory" {
  description = "Memory of one task, such as 512Mi or 32Gi."
  type        = string
  default     = "1Gi"
}

variable "job_cpu" {
  description = "CPUs of one task."
  type        = string
  default     = "1"
}

variable "job_gpu" {
  description = "Type of the GPU of one task, such as nvidia-l4. It needs at least 4 CPUs and 16Gi of memory. If null, tasks have none."
  type        = string
  default     = null
}

variable "jobs" {
  description = "For single jobs, by the name of their folder: what differs from the variables job_..., and the secrets that the job reads from Secret Manager, as environment variables of the same names."
  type = map(object({
    cpu         = optional(string)
    memory      = optional(string)
    gpu         = optional(string)
    timeout     = optional(number)
    parallelism = optional(number)
    secrets     = optional(set(string), [])
  }))
  default = {}

  validation {
    condition     = alltrue([for folder in keys(var.jobs) : fileexists("${path.module}/../${folder}/job.py")])
    error_message = "Each key of jobs must be the folder of a job: one with job.py."
  }

  validation {
    condition     = alltrue([for job in var.jobs : coalesce(job.timeout, 1) >= 1 && coalesce(job.timeout, 1) <= 604770])
    error_message = "timeout must be 1 to 604770 seconds."
  }

  validation {
    condition     = alltrue(flatten([for job in var.jobs : [for secret in job.secrets : can(regex("^[A-Za-z_][A-Za-z0-9_]*$", secret))]]))
    error_message = "The name of a secret must be possible for an environment variable: letters, digits and underscores."
  }
}

locals {
  job_folders = toset([for folder in local.folders : folder if fileexists("${path.module}/../${folder}/job.py")])

  # The names in Google Cloud, by folder.
  job_names = {
    for folder in local.job_folders :
    folder => folder == local.first_folder ? var.job_name : "${var.job_name}-${replace(folder, "_", "-")}"
  }

  # The variable of an environment for one job, or that for all of them.
  jobs = {
    for folder, name in local.job_names : folder => {
      name        = name
      cpu         = try(coalesce(var.jobs[folder].cpu), var.job_cpu)
      memory      = try(coalesce(var.jobs[folder].memory), var.job_memory)
      gpu         = try(coalesce(var.jobs[folder].gpu), var.job_gpu)
      timeout     = try(coalesce(var.jobs[folder].timeout), var.job_timeout)
      parallelism = try(coalesce(var.jobs[folder].parallelism), var.job_parallelism)
      secrets     = try(var.jobs[folder].secrets, [])
    }
  }

  # One item for each secret of each job.
  job_secrets = merge([
    for folder, job in local.jobs :
    { for secret in job.secrets : "${folder}:${secret}" => { folder = folder, secret = secret } }
  ]...)

  # The events that are too long for the environment of an execution.
  events_condition = "resource.name.startsWith(\"projects/_/buckets/${google_storage_bucket.messages.name}/objects/events/\")"
}

resource "google_cloud_run_v2_job" "job" {
  for_each = local.jobs

  name                = each.value.name
  location            = var.region
  deletion_protection = false # it has no data

  template {
    parallelism = each.value.parallelism

    template {
      service_account               = google_service_account.job[each.key].email
      timeout                       = "${each.value.timeout}s"
      max_retries                   = 0 # Dagster retries
      gpu_zonal_redundancy_disabled = each.value.gpu == null ? null : true

      containers {
        image = "us-docker.pkg.dev/cloudrun/container/job:latest"

        resources {
          limits = merge(
            { cpu = each.value.cpu, memory = each.value.memory },
            each.value.gpu == null ? {} : { "nvidia.com/gpu" = "1" },
          )
        }

        env {
          name  = "GOOGLE_CLOUD_PROJECT"
          value = var.project_id
        }

        env {
          name  = "MESSAGES_BUCKET"
          value = google_storage_bucket.messages.name
        }

        dynamic "env" {
          for_each = var.environment_variables
          content {
            name  = env.key
            value = env.value
          }
        }

        dynamic "env" {
          for_each = each.value.secrets
          content {
            name = env.value
            value_source {
              secret_key_ref {
                secret  = env.value
                version = "latest"
              }
            }
          }
        }
      }

      dynamic "node_selector" {
        for_each = each.value.gpu[*]
        content {
          accelerator = node_selector.value
        }
      }

      dynamic "vpc_access" {
        for_each = var.vpc[*]
        content {
          egress = "ALL_TRAFFIC"
          network_interfaces {
            network    = vpc_access.value.network
            subnetwork = vpc_access.value.subnetwork
          }
        }
      }
    }
  }

  lifecycle {
    # `just deploy-job` sets the image.
    ignore_changes = [client, client_version, template[0].template[0].containers[0].image]

    precondition {
      condition     = each.value.timeout <= var.messages_days * 24 * 60 * 60
      error_message = "Messages of ${each.value.name} would be deleted while its task is running: set messages_days to more days, or its timeout to fewer seconds."
    }

    precondition {
      condition     = length(each.value.name) <= 49
      error_message = "${each.value.name} is too long: Google Cloud allows 49 characters. Shorten the name of the folder ${each.key}."
    }
  }

  depends_on = [time_sleep.job_grants]
}

# New accounts and roles take a minute or more to become effective everywhere, and a build or an
# execution that starts earlier fails. Terraform waits when it creates them, and not later.
resource "time_sleep" "job_grants" {
  create_duration = "90s"

  triggers = {
    jobs    = join(" ", keys(local.jobs))
    secrets = join(" ", keys(local.job_secrets))
  }

  depends_on = [
    google_artifact_registry_repository_iam_member.build_writes_images,
    google_project_iam_member.build_writes_logs,
    google_project_service.api,
    google_secret_manager_secret_iam_member.job_reads_secret,
    google_storage_bucket_iam_member.build_reads_bundles,
    google_storage_bucket_iam_member.job_creates_messages,
    google_storage_bucket_iam_member.job_reads_events,
    google_storage_bucket_iam_member.job_uses_lake,
  ]
}

resource "google_service_account" "job" {
  for_each = local.jobs

  account_id   = each.key == local.first_folder ? "${local.account_prefix}-job" : "${trimsuffix(substr(each.value.name, 0, 19), "-")}-job-${substr(sha1(each.value.name), 0, 6)}"
  display_name = "Runs the Cloud Run job ${each.value.name}"

  depends_on = [google_project_service.api]
}

resource "google_storage_bucket_iam_member" "job_creates_messages" {
  for_each = local.jobs

  bucket = google_storage_bucket.messages.name
  role   = "roles/storage.objectCreator" # can neither read nor overwrite messages
  member = google_service_account.job[each.key].member
}

resource "google_storage_bucket_iam_member" "job_reads_events" {
  for_each = local.jobs

  bucket = google_storage_bucket.messages.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.job[each.key].member

  condition {
    title      = "events"
    expression = local.events_condition
  }
}

resource "google_storage_bucket_iam_member" "job_uses_lake" {
  for_each = local.jobs

  bucket = google_storage_bucket.lake.name
  role   = "roles/storage.objectUser"
  member = google_service_account.job[each.key].member
}

resource "google_secret_manager_secret_iam_member" "job_reads_secret" {
  for_each = local.job_secrets

  secret_id = each.value.secret
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.job[each.value.folder].member

  depends_on = [google_project_service.api]
}

# Dagster stores events, and deletes them after the execution.
resource "google_storage_bucket_iam_member" "orchestrator_stores_events" {
  bucket = google_storage_bucket.messages.name
  role   = "roles/storage.objectUser"
  member = google_service_account.orchestrator.member

  condition {
    title      = "events"
    expression = local.events_condition
  }
}

# roles/run.invoker may not set the environment of an execution, in which the event is.
resource "google_cloud_run_v2_job_iam_member" "orchestrator_runs_job" {
  for_each = local.jobs

  name     = google_cloud_run_v2_job.job[each.key].name
  location = var.region
  role     = "roles/run.jobsExecutorWithOverrides"
  member   = google_service_account.orchestrator.member
}

resource "google_cloud_run_v2_job_iam_member" "orchestrator_views_executions" {
  for_each = local.jobs

  name     = google_cloud_run_v2_job.job[each.key].name
  location = var.region
  role     = "roles/run.viewer"
  member   = google_service_account.orchestrator.member
}
